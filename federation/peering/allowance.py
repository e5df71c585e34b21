"""How much of one peer is kept here, and how often: what a member in the wrong hands can cost the others. Pure.

All that is kept is compiled for every sidecar, so it is counted as what it costs there, and as what it costs in etcd.
"""

from collections.abc import Iterable
from typing import NamedTuple

from federation.model import ExportedService

MOST_EXPORTS = 5_000
MOST_PORTS = 10_000
"""Of all exports of a peer: each is a cluster in every sidecar, some 30 to 60 KiB."""
MOST_HOSTS = 200_000
"""Ports times endpoints, of all exports of a peer: each is a host in every sidecar, some 2 KiB."""
MOST_BYTES = 64 * 1024 * 1024
"""Of all records of a peer. etcd keeps 2 GiB unless told otherwise."""


MOST_PER_SECOND = 20
"""Responses of a peer that bring more than a beat, in the long run."""
MOST_AT_ONCE = 20
"""Of these, after a quiet time: the first that a peer says is not to wait."""


class Weight(NamedTuple):
    """What keeping something costs."""

    exports: int = 0
    ports: int = 0
    hosts: int = 0
    size: int = 0

    def plus(self, other: "Weight", *, times: int = 1) -> "Weight":
        """Returns the sum with so many of `other`."""
        return Weight(*(mine + times * theirs for mine, theirs in zip(self, other, strict=True)))


MOST = Weight(MOST_EXPORTS, MOST_PORTS, MOST_HOSTS, MOST_BYTES)
_WORDS = ("exports", "ports", "hosts (ports times endpoints)", "bytes")


def weigh(exported: ExportedService | None, *, size: int) -> Weight:
    """Returns what a record of `size` bytes costs; None for one that nobody can read: it costs its room."""
    if exported is None:
        return Weight(1, size=size)
    return Weight(1, len(exported.ports), len(exported.ports) * len(exported.endpoints), size)


class Pace:
    """How often responses of one peer are kept: as many as come, up to a limit, then evenly.

    Each costs a write to etcd and a new picture for all proxies. Who changes things faster has them joined at its own
    end, since it may not send another response before the last was answered.
    """

    def __init__(self) -> None:
        self._next_at = 0.0

    def wait(self, at: float) -> float:
        """Counts a response that came `at` a time of a clock that nobody sets; returns the seconds to wait with it."""
        self._next_at = max(self._next_at, at - MOST_AT_ONCE / MOST_PER_SECOND) + 1 / MOST_PER_SECOND
        return max(0.0, self._next_at - at)


class Allowance:
    """What is kept of one peer, by the keys of its records, and whether more may be."""

    def __init__(self, held: Iterable[tuple[str, Weight]] = ()) -> None:
        self._held = dict(held)
        self._total = Weight()
        for weight in self._held.values():
            self._total = self._total.plus(weight)

    def __contains__(self, key: str) -> bool:
        """Says whether something is kept under `key`."""
        return key in self._held

    def take(self, key: str, weight: Weight) -> str:
        """Counts what is to be kept under `key` from now on; returns why it may not be, and then counts nothing.

        What costs no more than what it replaces always may.
        """
        before = self._held.get(key, Weight())
        total = self._total.plus(before, times=-1).plus(weight)
        for word, mine, was, much, most in zip(_WORDS, weight, before, total, MOST, strict=True):
            if much > most and mine > was:
                return f"with it this peer would have {much} {word} here, and {most} are the most"
        self._held[key], self._total = weight, total
        return ""

    def drop(self, key: str) -> None:
        """Counts what is no longer kept."""
        self._total = self._total.plus(self._held.pop(key, Weight()), times=-1)
