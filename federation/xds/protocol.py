"""The server side of one delta xDS stream as a pure state machine: requests and wishes in, messages to send out.

    stream.offer(resources)            what the client should have from now on
    stream.receive(request)            what the client says: wishes, ACK, NACK
    for push in stream.due(): ...      what to write now; one unanswered response per type

Envoy needs an order (Order.ENVOY), or requests fail while configuration changes:

    upstreams --+-- (ACK: all are warm) --> routes -- (ACK) --> listeners -- (ACK) --> upstreams that go
    secrets ----+                             |
    endpoints --+-----------------------------+
    extensions                                  (at once, always)

Endpoints and secrets never wait for an ACK of upstreams: an upstream becomes warm, and its response is acknowledged,
only after they came. Extensions wait for nothing either: they say who may come in, a listener is warm only when it has
those that it names, and who is revoked is to be denied now. Endpoints go behind the change of their upstream, and
follow it at once even if they are the same: Envoy makes the upstream anew and does not ask for them again.
Sources: Envoy, "xDS REST and gRPC protocol", sections "Incremental xDS" and "Eventual consistency considerations".
"""

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from types import MappingProxyType

import msgspec
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from federation.xds.channel import Channel, Due, Rejection
from federation.xds.resources import Resource, ResourceSet, TypeUrl
from federation.xds.wire import encode_response

_DELIVERY = (
    TypeUrl.EXTENSION,
    TypeUrl.CLUSTER,
    TypeUrl.SECRET,
    TypeUrl.ENDPOINTS,
    TypeUrl.ROUTES,
    TypeUrl.LISTENER,
)
_SILENT_WILDCARD = frozenset({TypeUrl.CLUSTER, TypeUrl.LISTENER})
"""Envoy's types of which a first request without names means all (the legacy wildcard)."""


class Order(Enum):
    """In which order types are delivered. ENVOY: make before break; NONE: each type by itself."""

    ENVOY = auto()
    NONE = auto()


_LONGEST_REFUSAL = 64 * 1024
"""Characters that are read of a refusal. Culprits that a longer one names beyond that are sent, and named, again."""


class Subscribed(msgspec.Struct, frozen=True):
    """The client changed what it wants of a type."""

    type_url: TypeUrl


class Acked(msgspec.Struct, frozen=True):
    """The client took the response `nonce` (and may have changed what it wants)."""

    type_url: TypeUrl
    nonce: str


class Rejected(msgspec.Struct, frozen=True):
    """The client refused the response `nonce`. `parked` are the culprits, empty while they are still being isolated."""

    type_url: TypeUrl
    nonce: str
    message: str
    parked: tuple[Rejection, ...]


class Ignored(msgspec.Struct, frozen=True):
    """The request asks for nothing that we know: a foreign type, or an answer to a nonce never sent."""

    reason: str


Reply = Subscribed | Acked | Rejected | Ignored


class Push(msgspec.Struct, frozen=True):
    """One response to send. `body` is an encoded DeltaDiscoveryResponse."""

    type_url: TypeUrl
    nonce: str
    upserts: tuple[str, ...]
    removed: tuple[str, ...]
    body: bytes


class DeltaStream:
    """What one client wants, has and refused, and what must be sent next."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._channels: dict[TypeUrl, Channel] = {}
        self._target: ResourceSet | None = None
        self._last_nonce = 0
        self._unfollowed: set[str] = set()
        self._is_patient = order is Order.ENVOY
        """Whether routes and listeners still wait for Envoy to ask for its upstreams."""

    def receive(self, request: DeltaDiscoveryRequest) -> Reply:
        """Takes one request of the client."""
        try:
            type_url = TypeUrl(request.type_url)
        except ValueError:
            return Ignored(f"unknown type {request.type_url}")
        channel = self._channels.get(type_url)
        if channel is None:
            self._open(type_url, request)
            return Subscribed(type_url)
        reply: Reply = Subscribed(type_url)
        nonce = request.response_nonce
        if nonce and nonce not in channel.flights:
            reply = Ignored(f"unknown nonce {nonce}")
        elif nonce and request.HasField("error_detail"):
            message = request.error_detail.message[:_LONGEST_REFUSAL]
            reply = Rejected(type_url, nonce, message, channel.reject(nonce, message))
        elif nonce:
            channel.acknowledge(nonce)
            reply = Acked(type_url, nonce)
        channel.unsubscribe(request.resource_names_unsubscribe)
        channel.subscribe(request.resource_names_subscribe)
        return reply

    def offer(self, resources: ResourceSet) -> None:
        """Sets what the client should have from now on."""
        self._target = resources
        for channel in self._channels.values():
            self._offer_to(channel)

    def due(self) -> list[Push]:
        """Returns the messages to send now, in order; they count as sent.

        Nothing before the first offer: an empty picture would take everything away from a client that reconnects.
        """
        if self._target is None:
            return []
        if self._order is Order.NONE:
            ready = [channel for channel in self._channels.values() if not channel.is_waiting]
            return [self._send(channel, due) for channel in ready if (due := channel.due())]
        pushes = []
        for type_url in _DELIVERY:
            channel = self._channels.get(type_url)
            if channel is not None and not channel.is_waiting and (due := self._permitted(channel)):
                pushes.append(self._send(channel, due))
                if type_url is TypeUrl.CLUSTER:
                    self._follow(pushes[-1].upserts)
        return pushes

    def unblock(self) -> tuple[TypeUrl, ...]:
        """Stops waiting for the unanswered responses, so that the rest goes on; returns their types, now stalled.

        For an upstream that never becomes warm: Envoy then answers no response about upstreams any more, and on a new
        stream does not even ask for them (envoy#36951).
        """
        self._is_patient = False
        return tuple(channel.type_url for channel in self._channels.values() if channel.give_up())

    @property
    def is_settled(self) -> bool:
        """Says whether all that was offered is acknowledged, refused or stalled: nothing more is due without news.

        Never before the client has asked for something; an Envoy, for its upstreams and its listeners.
        """
        if self._target is None or not self._channels:
            return False
        if self._order is Order.ENVOY and not self._channels.keys() >= _SILENT_WILDCARD:
            return False
        return not any(channel.is_waiting or self._is_unsettled(channel) for channel in self._channels.values())

    @property
    def rejections(self) -> Mapping[tuple[TypeUrl, str], Rejection]:
        """What is parked now, by type and name."""
        return {
            (channel.type_url, name): rejection
            for channel in self._channels.values()
            for name, rejection in channel.parked.items()
        }

    @property
    def acknowledged(self) -> Mapping[TypeUrl, Mapping[str, str]]:
        """What the client has taken: name to version, by type."""
        return {type_url: MappingProxyType(channel.held) for type_url, channel in self._channels.items()}

    def has_taken(self, type_url: TypeUrl) -> bool:
        """Says whether the client took any response of a type on this stream."""
        return type_url in self._channels and self._channels[type_url].has_taken

    @property
    def unanswered(self) -> tuple[tuple[TypeUrl, str], ...]:
        """Type and nonce of responses that wait for their answer, stalled ones too."""
        return tuple((channel.type_url, nonce) for channel in self._channels.values() for nonce in channel.flights)

    @property
    def is_waiting(self) -> bool:
        """Says whether something depends on the client's answer, or its first wish: `unblock` would change that."""
        if any(channel.is_waiting for channel in self._channels.values()):
            return True
        return (
            self._is_patient
            and TypeUrl.CLUSTER not in self._channels
            and self._target is not None
            and any(channel.due() for channel in self._channels.values())
        )

    @property
    def stalled(self) -> tuple[TypeUrl, ...]:
        """The types of which a response was given up by `unblock` and is still unanswered."""
        return tuple(channel.type_url for channel in self._channels.values() if channel.is_stalled)

    def _open(self, type_url: TypeUrl, request: DeltaDiscoveryRequest) -> None:
        channel = self._channels[type_url] = Channel(type_url)
        if self._target is not None:
            self._offer_to(channel)
        names = request.resource_names_subscribe
        is_wildcard = not names and (self._order is Order.NONE or type_url in _SILENT_WILDCARD)
        channel.open(names, request.initial_resource_versions, is_wildcard=is_wildcard)
        if type_url is TypeUrl.ENDPOINTS:
            if TypeUrl.CLUSTER not in self._channels:
                # Envoy does not ask for upstreams while one warms, and that one may have endpoints from before.
                for name in channel.subscribed:
                    channel.owe(name)
            elif channel.held:  # otherwise it asks for everything anyway
                self._follow(self._unfollowed)
            self._unfollowed = set()

    def _offer_to(self, channel: Channel) -> None:
        assert self._target is not None
        upstreams = self._target.get(TypeUrl.CLUSTER, {}) if channel.type_url is TypeUrl.ENDPOINTS else {}
        channel.offer(self._target.get(channel.type_url, {}), implied=upstreams)

    def _send(self, channel: Channel, due: Due) -> Push:
        self._last_nonce += 1
        nonce = str(self._last_nonce)
        channel.send(nonce, due)
        return Push(
            type_url=channel.type_url,
            nonce=nonce,
            upserts=tuple(resource.name for resource in due.upserts),
            removed=due.removed,
            body=encode_response(channel.type_url, nonce, due.upserts, due.removed),
        )

    def _permitted(self, channel: Channel) -> Due:
        """Returns the part of what is due of a type that Envoy may get now."""
        due = channel.due()
        if not due:
            return due
        match channel.type_url:
            case TypeUrl.CLUSTER:
                if due.removed and not self._lets_upstreams_go():
                    unknown = tuple(name for name in due.removed if not channel.may_have(name))
                    return msgspec.structs.replace(due, removed=unknown)
            case TypeUrl.ENDPOINTS:
                # Endpoints may mean something that only the upstream's next version knows: they come behind it.
                return channel.due(hold=self._unsent(TypeUrl.CLUSTER))
            case TypeUrl.ROUTES:
                if not self._is_ready(TypeUrl.CLUSTER) or self._unsent(TypeUrl.ENDPOINTS):
                    return Due()
            case TypeUrl.LISTENER:
                if not (self._is_ready(TypeUrl.CLUSTER) and self._is_ready(TypeUrl.ROUTES)):
                    return Due()
        return due

    def _unsent(self, type_url: TypeUrl) -> frozenset[str]:
        channel = self._channels.get(type_url)
        return frozenset(one.name for one in channel.due().upserts) if channel is not None else frozenset()

    def _is_ready(self, type_url: TypeUrl) -> bool:
        """Says whether the client has all additions and changes of a type, as far as it wants and takes them."""
        channel = self._channels.get(type_url)
        if channel is None:
            return type_url is not TypeUrl.CLUSTER or not self._is_patient
        return not (channel.is_waiting or channel.due().upserts)

    def _lets_upstreams_go(self) -> bool:
        """Says whether nothing that the client has can still name an upstream that is no longer in the target.

        A refused resource may: its predecessor is in force. On a reconnect the answer to the listeners' first request
        is waited for, since the requests of all types, that of the routes too, come before its ACK.
        """
        if TypeUrl.LISTENER not in self._channels:
            return False
        channels = [self._channels[one] for one in (TypeUrl.ROUTES, TypeUrl.LISTENER) if one in self._channels]
        return not any(channel.is_waiting or channel.parked or channel.due() for channel in channels)

    def _is_unsettled(self, channel: Channel) -> bool:
        due = channel.due()
        if channel.type_url is TypeUrl.CLUSTER and not due.upserts and not due.is_answer and self._order is Order.ENVOY:
            # Removals that a refused route or listener holds back wait for its repair: for news.
            keepers = (TypeUrl.ROUTES, TypeUrl.LISTENER)
            return bool(due) and not any(self._channels[one].parked for one in keepers if one in self._channels)
        return bool(due)

    def _follow(self, upstreams: Iterable[str]) -> None:
        """Makes the endpoints of changed upstreams follow, where the client wants them already and will not ask."""
        endpoints = self._channels.get(TypeUrl.ENDPOINTS)
        if endpoints is None:
            self._unfollowed.update(upstreams)
        elif endpoints.subscribed and self._target is not None:
            resources = self._target.get(TypeUrl.CLUSTER, {})
            for name in upstreams:
                # One that is to go by now warms all the same, and until it is warm no answer about upstreams comes.
                wanted = _endpoints_name(resources[name]) if name in resources else name
                if wanted in endpoints.subscribed:
                    endpoints.owe(wanted)


def _endpoints_name(upstream: Resource) -> str:
    """Returns under which name an upstream asks for its endpoints, if it asks for any."""
    return Cluster.FromString(upstream.body).eds_cluster_config.service_name or upstream.name
