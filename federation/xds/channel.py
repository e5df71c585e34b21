"""One resource type on one delta stream, seen from the server: what the client wants, has and refused. Pure.

            offer                        send                         acknowledge
    target -------> pending (differs) -------> sent (in flight) -------> held
                        ^                            | reject
                        |                            v
                        +---- suspects go in halves, a culprit is parked until its version changes

`protocol` puts the channels of a stream in order; nothing here knows of another type.
"""

import re
from collections.abc import Container, Iterable, Mapping
from itertools import accumulate

import msgspec

from federation.xds.resources import Resource, TypeUrl
from federation.xds.wire import empty_endpoints

_UNCERTAIN = ""
"""Version of a resource of which a refused response leaves open what the client has; equal to no real version."""

_NOTHING: Mapping[str, Resource] = {}

_WATCHED = frozenset({TypeUrl.ENDPOINTS, TypeUrl.ROUTES, TypeUrl.SECRET, TypeUrl.EXTENSION})
"""Types that Envoy takes by name only and never gives up on our word: it stops wanting them by itself."""

_ONE_BY_ONE = frozenset({TypeUrl.ROUTES, TypeUrl.SECRET, TypeUrl.EXTENSION})
"""Types that go alone, since Envoy's refusal names no culprit and the same bytes, sent again, may be taken unseen.
Endpoints would belong here too; they are many, and taken or refused alike every time, so they go together."""

_UNANSWERED = frozenset({TypeUrl.BEAT})
"""Types that nobody answers, and that count as taken when they are sent: an answer to each beat, of each peer, was half
of what a mesh of many costs that does nothing."""

_NAMED_IN_REFUSALS = frozenset({TypeUrl.CLUSTER, TypeUrl.LISTENER, TypeUrl.EXPORT, TypeUrl.MEMBER})
"""Types of which a refusal mostly names the culprits. Envoy's: `Error adding/updating cluster(s) NAME: why, NAME: why`;
that of another control plane: `Export NAME: why; Export NAME: why`."""

_IN_PORTIONS = frozenset({TypeUrl.EXPORT, TypeUrl.MEMBER})
"""Types of which a response is bounded: beats come between the portions, and nobody needs room for all at once."""

LARGEST_PORTION = 1024 * 1024
"""Bytes of the resources of one bounded response, unless a single one is larger: under a second at 10 Mbit/s."""


_NAMED = re.compile(r"(?<![^\s,])[^\s,]+(?=: )")


_LONGEST_REASON = 1024
"""Characters that are kept of why one resource was refused: a hostile client gives a reason for each, of megabytes."""


class Rejection(msgspec.Struct, frozen=True):
    """One resource that the client refused. It is not sent again until its version changes."""

    type_url: TypeUrl
    name: str
    version: str
    message: str


class Flight(msgspec.Struct):
    """A response that is not answered yet: versions by name, and names that it removed."""

    versions: Mapping[str, str]
    removed: tuple[str, ...]
    is_stalled: bool = False


class Due(msgspec.Struct, frozen=True):
    """What one response would hold. `is_answer`: it must be sent even when it holds nothing."""

    upserts: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()
    is_answer: bool = False

    def __bool__(self) -> bool:
        return bool(self.upserts or self.removed or self.is_answer)


class Channel:
    """The state of one type. Names are resource names; versions are hashes of bytes."""

    def __init__(self, type_url: TypeUrl) -> None:
        self.type_url = type_url
        self.subscribed: set[str] = set()
        self.is_wildcard = False
        self.held: dict[str, str] = {}
        self.parked: dict[str, Rejection] = {}
        self.flights: dict[str, Flight] = {}
        self.has_taken = False
        """Whether the client took any response on this stream."""
        self._target = _NOTHING
        self._implied: Mapping[str, object] = _NOTHING
        self._sent: dict[str, str] = {}
        self._owed: set[str] = set()
        self._pending: set[str] = set()
        self._suspects: list[tuple[str, ...]] = []
        self._owes_answer = False
        self._repaired: set[str] = set()

    # What the client wants

    def open(self, subscribe: Iterable[str], held: Mapping[str, str], *, is_wildcard: bool) -> None:
        """Takes the first request of a stream: `held` are the versions that the client has from before."""
        names = set(subscribe)
        self.is_wildcard = is_wildcard or "*" in names
        self.subscribed = names - {"*"}
        self._sent = {name: version for name, version in held.items() if self._concerns(name)}
        self.held = dict(self._sent)
        self._owed = self.subscribed - self._sent.keys()
        self._owes_answer = self.is_wildcard
        self._pending = self._owed | self._sent.keys()
        if self.is_wildcard:
            self._pending |= self._target.keys()

    def subscribe(self, names: Iterable[str]) -> None:
        """Adds names, or `*`. A name is answered even when the client has it: it may have thrown it away."""
        for name in names:
            if name == "*":
                self.is_wildcard = True
                self._owes_answer = True
                self._pending |= self._target.keys() | self._sent.keys()
            else:
                self.subscribed.add(name)
                self.owe(name)

    def unsubscribe(self, names: Iterable[str]) -> None:
        """Takes names, or `*`, away. What is no longer wanted is forgotten."""
        for name in names:
            if name == "*":
                self.is_wildcard = False
                for other in self._sent.keys() - self.subscribed:
                    self._forget(other)
            elif name in self.subscribed:
                self.subscribed.discard(name)
                if self.is_wildcard:  # still wanted, but the client cannot know: the protocol asks for an answer
                    self.owe(name)
                else:
                    self._forget(name)

    def owe(self, name: str) -> None:
        """Makes sure that the next response speaks of `name`, whatever the client has."""
        self._owed.add(name)
        self._pending.add(name)

    # What the client should have

    def offer(self, target: Mapping[str, Resource], implied: Mapping[str, object] = _NOTHING) -> None:
        """Sets the target. For endpoints, `implied` are the upstreams: one without endpoints of its own gets none."""
        if target is not self._target:
            before = self._target
            changed = {name for name, resource in target.items() if before.get(name) is not resource}
            changed |= before.keys() - target.keys()
            self._pending |= changed if self.is_wildcard else changed & self.subscribed
            self._target = target
        if implied is not self._implied:
            changed = self._implied.keys() ^ implied.keys()
            self._pending |= changed & self.subscribed
            self._implied = implied

    def wanted(self, name: str) -> Resource | None:
        """Returns what the client should have under `name`."""
        if not self._concerns(name):
            return None
        resource = self._target.get(name)
        if resource is None and name in self._implied:
            return empty_endpoints(name)
        return resource

    def due(self, hold: Container[str] = ()) -> Due:
        """Returns what the next response would hold, were it sent now, whether or not one is in flight.

        The names in `hold` stay back, unless the client waits for an answer about them.
        """
        if not self._pending and not self._owes_answer:
            return Due()
        upserts: dict[str, Resource] = {}
        removed: list[str] = []
        for name in sorted(self._pending):
            resource = self.wanted(name)
            if resource is None:
                self.parked.pop(name, None)
            parked = self.parked.get(name)
            if resource is not None and not (parked and parked.version == resource.version):
                if name in self._owed or self._sent.get(name) != resource.version:
                    if name in self._owed or name not in hold:
                        upserts[name] = resource
                    continue
            elif name in self._owed and self.type_url is TypeUrl.ENDPOINTS:
                # An upstream may wait for this to become warm; "removed" is not heard by one that is.
                upserts[name] = empty_endpoints(name)
                continue
            elif name in self._owed or (resource is None and name in self._sent and self._is_removable):
                removed.append(name)
                continue
            self._pending.discard(name)
        return self._portion(upserts, removed)

    def may_have(self, name: str) -> bool:
        """Says whether the client may have `name` in some version, as far as it was sent or claimed."""
        return name in self._sent

    # What happened

    def send(self, nonce: str, due: Due) -> None:
        """Notes that `due` (or a part of it) is on its way."""
        versions = {resource.name: resource.version for resource in due.upserts}
        if self.type_url in _UNANSWERED:
            self.held.update(versions)
        else:
            self.flights[nonce] = Flight(versions, due.removed)
        self._sent.update(versions)
        for name in versions.keys() & self.parked.keys():
            wanted = self.wanted(name)
            if wanted is None or wanted.version != self.parked[name].version:  # otherwise something stands in for it
                del self.parked[name]
                self._repaired.add(name)
        for name in due.removed:
            self._sent.pop(name, None)
        done = versions.keys() | set(due.removed)
        self._pending -= done
        self._owed -= done
        self._owes_answer = False
        self._suspects = [group for group in self._suspects if not versions.keys() & set(group)]

    def acknowledge(self, nonce: str) -> None:
        """Notes that the client took a response."""
        flight = self.flights.pop(nonce)
        self.has_taken = True
        self.held.update({name: version for name, version in flight.versions.items() if name in self._sent})
        self._drop_removed(flight)
        if self.type_url is TypeUrl.SECRET and self._repaired & flight.versions.keys():
            # Beside a bad secret Envoy refuses good ones too: now that it is repaired, they deserve another try.
            self._pending |= self.parked.keys()
            self.parked.clear()
        self._repaired -= flight.versions.keys()

    def reject(self, nonce: str, message: str) -> tuple[Rejection, ...]:
        """Notes that the client refused a response: nothing of it counts as delivered. Returns the culprits found."""
        flight = self.flights.pop(nonce)
        self._repaired -= flight.versions.keys()
        if not flight.versions:
            self._drop_removed(flight)  # to say it again would be refused again
            return ()
        for name in flight.removed:
            if name not in self._sent and self._concerns(name):
                if self._is_removable:
                    self._sent[name] = _UNCERTAIN
                    self._pending.add(name)
                else:
                    self.owe(name)
        # What a later response has overtaken is that one's affair.
        current = [name for name, version in flight.versions.items() if self._sent.get(name) == version]
        for name in current:
            self._sent[name] = _UNCERTAIN
            self._pending.add(name)
        culprits = self._culprits(flight, message)
        if not culprits and len(current) > 1:
            middle = len(current) // 2
            self._suspects[:0] = [tuple(current[:middle]), tuple(current[middle:])]
        rejections = tuple(
            Rejection(self.type_url, name, flight.versions[name], _about(name, message))
            for name in culprits
            if name in current
        )
        self.parked.update({rejection.name: rejection for rejection in rejections})
        return rejections

    def give_up(self) -> bool:
        """Stops waiting for the answers in flight; says whether there were any. A late answer still counts."""
        waiting = [flight for flight in self.flights.values() if not flight.is_stalled]
        for flight in waiting:
            flight.is_stalled = True
        return bool(waiting)

    @property
    def is_waiting(self) -> bool:
        """Says whether a response is in flight that we wait for."""
        return any(not flight.is_stalled for flight in self.flights.values())

    @property
    def is_stalled(self) -> bool:
        """Says whether a response was given up and is still unanswered."""
        return any(flight.is_stalled for flight in self.flights.values())

    @property
    def _is_removable(self) -> bool:
        return self.type_url not in _WATCHED

    def _concerns(self, name: str) -> bool:
        return self.is_wildcard or name in self.subscribed

    def _forget(self, name: str) -> None:
        self._sent.pop(name, None)
        self.held.pop(name, None)
        self.parked.pop(name, None)
        self._pending.discard(name)
        self._owed.discard(name)

    def _drop_removed(self, flight: Flight) -> None:
        for name in flight.removed:
            if name not in self._sent:
                self.held.pop(name, None)

    def _portion(self, upserts: Mapping[str, Resource], removed: list[str]) -> Due:
        self._suspects = [group for group in self._suspects if self._pending & set(group)]
        for suspects in self._suspects:
            group = tuple(upserts[name] for name in suspects if name in upserts)
            if group:
                return Due(group)
        chosen = tuple(upserts.values())
        if self.type_url is TypeUrl.SECRET and self.parked:
            # Envoy refuses every secret beside a bad one: the repaired goes first, and of the rest only what is asked.
            repaired = [resource for resource in chosen if resource.name in self.parked]
            chosen = tuple(repaired or [resource for resource in chosen if resource.name in self._owed])
        if self.type_url in _ONE_BY_ONE:
            chosen = chosen[:1]
        elif self.type_url in _IN_PORTIONS:
            sizes = accumulate(len(resource.name) + len(resource.body) for resource in chosen)
            chosen = chosen[: max(1, sum(size <= LARGEST_PORTION for size in sizes))]
        return Due(chosen, tuple(removed), self._owes_answer)

    def _culprits(self, flight: Flight, message: str) -> list[str]:
        if len(flight.versions) == 1:
            return list(flight.versions)
        if self.type_url not in _NAMED_IN_REFUSALS:
            return []
        named = set(_NAMED.findall(message))
        return [name for name in flight.versions if name in named]


def _about(name: str, message: str) -> str:
    """Returns what a refusal says of one resource: all of it, or of a long one the part that begins with the name."""
    if len(message) <= _LONGEST_REASON:
        return message
    begin = max(0, message.find(f"{name}: "))
    return message[begin : begin + _LONGEST_REASON]
