"""The client side of a delta xDS stream for our own types between control planes, as a pure state machine.

    client = DeltaClient((TypeUrl.MEMBER, TypeUrl.EXPORT, TypeUrl.BEAT))
    send(client.open(held, node))             # one request a type, with the versions that we hold
    received = client.receive(response)       # check what it brings, then keep it, then
    send(client.acknowledge(received))        # or client.reject(received, "why")

Every type is subscribed whole (`*`). Only names in `Received.removed` may be deleted: an absent one means nothing.
"""

from collections.abc import Mapping, Sequence

import msgspec
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from federation.xds.resources import Resource, TypeUrl


class InvalidResponse(Exception):
    """The server said something that the protocol does not allow; the stream is of no more use."""


class Received(msgspec.Struct, frozen=True):
    """What one response brings. To be acknowledged or rejected as a whole, in the order received."""

    type_url: TypeUrl
    nonce: str
    upserts: tuple[Resource, ...]
    removed: tuple[str, ...]


class DeltaClient:
    """One stream's worth of state; make a new one for each connection."""

    def __init__(self, types: Sequence[TypeUrl]) -> None:
        raise NotImplementedError

    def open(self, held: Mapping[TypeUrl, Mapping[str, str]], node: Node) -> list[DeltaDiscoveryRequest]:
        """Returns the first requests, one a type; `held` are the versions that we have, `node` rides in the first."""
        raise NotImplementedError

    def receive(self, response: DeltaDiscoveryResponse) -> Received:
        """Takes one response; raises InvalidResponse."""
        raise NotImplementedError

    def acknowledge(self, received: Received) -> DeltaDiscoveryRequest:
        """Returns the request that says: taken."""
        raise NotImplementedError

    def reject(self, received: Received, message: str) -> DeltaDiscoveryRequest:
        """Returns the request that says: nothing of this was taken, because of `message`."""
        raise NotImplementedError

    @property
    def held(self) -> Mapping[TypeUrl, Mapping[str, str]]:
        """The versions held now, by type and name: what to open the next connection with."""
        raise NotImplementedError
