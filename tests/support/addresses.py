"""Loopback addresses for tests: nobody else gets them, neither in this process nor in those that run beside it.

A process owns blocks of 254 addresses. It owns one as long as it holds a port of it that nothing else uses.
"""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

_BLOCKS = tuple(f"127.{second}.{third}" for second in range(240, 255) for third in range(256))
"""All there are. Labs take theirs below 127.240 (`SLOTS` in deploy/lab/addresses.py)."""

_OWNER_PORT = 15099
_LISTENING = "0A"  # a state of a socket in /proc/net/tcp, as <linux/tcp_states.h> numbers them


def free_address() -> str:
    """Returns an address that was given to nobody, and on which nobody listens."""
    return next(_free_addresses)


def free_block() -> str:
    """Returns the first three octets of 254 such addresses."""
    return next(_free_blocks)


def _claim() -> Iterator[str]:
    """Claims one block after the other. Begins anywhere, so that a process does not try all that others own."""
    first = random.SystemRandom().randrange(len(_BLOCKS))
    with ExitStack() as owned:
        for block in _BLOCKS[first:] + _BLOCKS[:first]:
            owner = socket.socket()
            try:
                owner.bind((f"{block}.254", _OWNER_PORT))
            except OSError:
                owner.close()
                continue
            owned.enter_context(owner)
            if block not in _listened_on():  # else its owner was killed, and left what it had started
                yield block
    raise AssertionError("all blocks of loopback addresses are taken")


def _listened_on() -> set[str]:
    """Returns the blocks in which somebody listens on a port."""
    sockets = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    addresses = (socket.inet_ntoa(bytes.fromhex(each[1][:8])[::-1]) for each in sockets if each[3] == _LISTENING)
    return {address.rpartition(".")[0] for address in addresses}


_free_blocks = _claim()
_free_addresses = (f"{block}.{number}" for block in _free_blocks for number in range(1, 255))
