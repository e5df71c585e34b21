"""The server side of one delta xDS stream as a pure state machine: requests and wishes in, messages to send out.

Source: Envoy's xDS protocol, "Incremental xDS".
"""

from collections.abc import Mapping
from enum import Enum, auto

import msgspec
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from federation.xds.resources import ResourceSet, TypeUrl


class Order(Enum):
    """In which order types are delivered. ENVOY: make before break; NONE: each type by itself."""

    ENVOY = auto()
    NONE = auto()


class Rejection(msgspec.Struct, frozen=True):
    """One resource that the client refused. It is not sent again until its version changes."""

    type_url: TypeUrl
    name: str
    version: str
    message: str


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
        raise NotImplementedError

    def receive(self, request: DeltaDiscoveryRequest) -> Reply:
        """Takes one request of the client."""
        raise NotImplementedError

    def offer(self, resources: ResourceSet) -> None:
        """Sets what the client should have from now on."""
        raise NotImplementedError

    def due(self) -> list[Push]:
        """Returns the messages to send now, in order; they count as sent."""
        raise NotImplementedError

    def unblock(self) -> tuple[TypeUrl, ...]:
        """Stops waiting for the unanswered responses, so that the rest goes on; returns their types, now stalled."""
        raise NotImplementedError

    @property
    def is_settled(self) -> bool:
        """Says whether all that was offered is acknowledged, refused or stalled: nothing more is due without news."""
        raise NotImplementedError

    @property
    def rejections(self) -> Mapping[tuple[TypeUrl, str], Rejection]:
        """What is parked now, by type and name."""
        raise NotImplementedError

    @property
    def acknowledged(self) -> Mapping[TypeUrl, Mapping[str, str]]:
        """What the client has taken: name to version, by type."""
        raise NotImplementedError

    @property
    def unanswered(self) -> tuple[tuple[TypeUrl, str], ...]:
        """Type and nonce of responses that wait for their answer, stalled ones too."""
        raise NotImplementedError

    @property
    def stalled(self) -> tuple[TypeUrl, ...]:
        """The types of which a response was given up by `unblock` and is still unanswered."""
        raise NotImplementedError
