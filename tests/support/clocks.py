"""Processes whose clock is wrong: `LD_PRELOAD` libraries for their environment. Only the wall clock is shifted.

Programs in Python use Debian's libfaketime. Envoy cannot: libfaketime looks functions up while Envoy's allocator
starts, which asks libfaketime for the time, and both wait for ever. It gets a library of three functions, made here.
"""

import shutil
import subprocess
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from tests.support.installed import missing

_LIBRARIES = (
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib64/faketime/libfaketimeMT.so.1"),
)

_SHIFT = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *out) {
  int failed = syscall(SYS_clock_gettime, clock, out);
  const char *shift = getenv("ISTHMUS_TEST_CLOCK");
  if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) out->tv_sec += atol(shift);
  return failed;
}
int gettimeofday(struct timeval *restrict out, void *restrict zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  out->tv_sec = now.tv_sec;
  out->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
"""


def python_clock(shift: timedelta) -> Mapping[str, str]:
    """Returns the environment of a Python program whose clock is ahead by `shift` (behind, when it is negative)."""
    library = next((library for library in _LIBRARIES if library.exists()), None)
    if library is None:
        missing("libfaketime is not installed: apt-get install faketime")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{shift.total_seconds():+.0f}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def envoy_clock(shift: timedelta, folder: Path) -> Mapping[str, str]:
    """Returns the environment of an Envoy whose clock is ahead by `shift`; makes a library in `folder`."""
    compiler = shutil.which("cc") or missing("there is no C compiler: apt-get install gcc libc6-dev")
    library = folder / "clock.so"
    if not library.exists():
        command = (compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-o", str(library), "-")
        subprocess.run(command, input=_SHIFT.encode(), check=True, capture_output=True)
    return {"LD_PRELOAD": str(library), "ISTHMUS_TEST_CLOCK": f"{shift.total_seconds():.0f}"}
