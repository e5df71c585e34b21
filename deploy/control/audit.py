"""The audit trail of one control plane: one JSON line per event, to a file that is only appended to, and to the log.

It is never rotated or cut here: who ships or archives it decides what is kept. A flood of refusals does not fill the
disk (`trust.audit.RefusalLimit`).
"""

import asyncio
import logging
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from urllib.parse import quote

from trust import files
from trust.audit import AuditEvent, AuditKind, RefusalLimit, encode

log = logging.getLogger(__name__)

_COUNT_EVERY = timedelta(minutes=1)


class Trail:
    """The trail of one replica. `note` is safe in any thread: gRPC renews the control plane's certificate in its own.

    A line that cannot be written is told to the log, and nothing else: a mesh that stands still because a disk is full
    helps nobody. Lines are not synced one by one: what a crash of the machine may lose is also in the log.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        """Takes over an open file; `Trail.open` makes one."""
        self.path = path
        self._descriptor = descriptor
        self._limit = RefusalLimit()
        self._lock = threading.Lock()
        self._is_broken = False

    @classmethod
    def open(cls, directory: Path, replica: str) -> Self:
        """Opens, or makes, `<directory>/audit-<replica>.jsonl` with mode 0600. Blocks; raises trust's FileRefused."""
        files.make_directory(directory)
        path = directory / f"audit-{quote(replica, safe='')}.jsonl"
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            os.fchmod(descriptor, 0o600)
        except OSError as error:
            raise files.FileRefused(
                f"the audit trail {path} cannot be written: {error.strerror}", "remove what stands in its place"
            ) from error
        return cls(descriptor, path)

    def close(self) -> None:
        """Writes the last counts and closes the file. What is noted later is only logged."""
        with self._lock:
            self._write(self._limit.flush(datetime.now(UTC)))
            os.close(self._descriptor)
            self._descriptor = -1

    def note(self, event: AuditEvent) -> None:
        """Writes an event; of refusals that repeat, only how many there were."""
        with self._lock:
            self._write(self._limit.take(event) if event.kind is AuditKind.REFUSED else (event,))

    async def run(self) -> None:
        """Writes, for ever, how often refusals were repeated."""
        while True:
            await asyncio.sleep(_COUNT_EVERY.total_seconds())
            with self._lock:
                self._write(self._limit.due(datetime.now(UTC)))

    def _write(self, events: tuple[AuditEvent, ...]) -> None:
        for event in events:
            line = encode(event)
            log.info("audit", extra={"event": line[:-1].decode()})
            try:
                os.write(self._descriptor, line)  # one call, so that lines of two processes do not mix
            except OSError as error:
                if not self._is_broken:
                    log.error("audit trail cannot be written", extra={"file": str(self.path), "reason": error.strerror})
                self._is_broken = True
            else:
                self._is_broken = False
