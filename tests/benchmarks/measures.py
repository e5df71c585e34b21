"""What processes and their connections have used, as the kernel and etcd count it."""

import os
import re
import resource
import socket
import struct
import time
from contextlib import suppress

import aiohttp
import msgspec
import psutil

from federation.model import FEDERATION_PORT
from tests.benchmarks.commands import Usage

# include/uapi/linux/tcp.h: tcpi_bytes_acked, tcpi_bytes_received (u64), tcpi_segs_out, tcpi_segs_in (u32)
_TCP_INFO_SIZE = 256
_COUNTERS = struct.Struct("=QQII")
_COUNTERS_AT = 120
_HEALTH_PORT = 2381  # where tests.support.etcd serves metrics
_WANTED = {
    "keys": "etcd_debugging_mvcc_keys_total",
    "size": "etcd_mvcc_db_total_size_in_use_in_bytes",
    "puts": "etcd_mvcc_put_total",
    "deletes": "etcd_mvcc_delete_total",
    "transactions": "etcd_mvcc_txn_total",
}


class EtcdUsage(msgspec.Struct, frozen=True):
    """What one etcd holds, and has used since it began. CPU in seconds, size and memory in bytes."""

    at: float
    cpu: float
    rss: int
    keys: float
    size: float
    puts: float
    deletes: float
    transactions: float


def usage() -> Usage:
    """Returns what this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    sent = received = packets = streams = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found = _counters(int(name))
            if found is not None:
                sent, received, packets = sent + found[0], received + found[1], packets + found[2] + found[3]
                streams += 1
    rss = psutil.Process().memory_info().rss
    return Usage(
        at=time.time(),
        cpu=used.ru_utime + used.ru_stime,
        rss=rss,
        sent=sent,
        received=received,
        packets=packets,
        streams=streams,
    )


async def etcd_usage(address: str, pid: int) -> EtcdUsage:
    """Returns what an etcd, which listens on an address, holds and has used."""
    process = psutil.Process(pid)
    cpu = process.cpu_times()
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}:{_HEALTH_PORT}/metrics") as answer:
        text = await answer.text()
    found = {
        field: float(match[1]) if (match := re.search(rf"^{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)) else 0.0
        for field, metric in _WANTED.items()
    }
    return EtcdUsage(at=time.time(), cpu=cpu.user + cpu.system, rss=process.memory_info().rss, **found)


def _counters(number: int) -> tuple[int, int, int, int] | None:
    """Returns bytes sent and received, packets out and in, of a connection to a peer's federation port."""
    if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
        return None
    with socket.socket(fileno=os.dup(number)) as one:
        if one.family != socket.AF_INET or one.type != socket.SOCK_STREAM or one.getpeername()[1] != FEDERATION_PORT:
            return None
        told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    counters: tuple[int, int, int, int] = _COUNTERS.unpack_from(told, _COUNTERS_AT)
    return counters
