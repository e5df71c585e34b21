"""The client side of a delta xDS stream for our own types between control planes, as a pure state machine.

    client = DeltaClient((TypeUrl.MEMBER, TypeUrl.EXPORT, TypeUrl.BEAT))
    send(client.open(held, node))             # one request a type, with the versions that we hold
    received = client.receive(response)       # check what it brings, then keep it, then
    send(client.acknowledge(received))        # or client.reject(received, "why")

Every type is subscribed whole (`*`). Only names in `Received.removed` may be deleted: an absent one means nothing. The
first response of a type may be empty: it says that what we hold is all there is.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.rpc.code_pb2 import INVALID_ARGUMENT
from google.rpc.status_pb2 import Status

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
        self._held: dict[TypeUrl, dict[str, str]] = {type_url: {} for type_url in types}

    def open(self, held: Mapping[TypeUrl, Mapping[str, str]], node: Node) -> list[DeltaDiscoveryRequest]:
        """Returns the first requests, one a type; `held` are the versions that we have, `node` rides in the first."""
        requests: list[DeltaDiscoveryRequest] = []
        for type_url, versions in self._held.items():
            versions.clear()
            versions.update(held.get(type_url, {}))
            requests.append(
                DeltaDiscoveryRequest(
                    node=None if requests else node,
                    type_url=type_url,
                    resource_names_subscribe=["*"],
                    initial_resource_versions=versions,
                )
            )
        return requests

    def receive(self, response: DeltaDiscoveryResponse) -> Received:
        """Takes one response; raises InvalidResponse."""
        if response.type_url not in self._held:
            raise InvalidResponse(f"a response of type {response.type_url!r}, which was not asked for")
        if not response.nonce:
            raise InvalidResponse(f"a response of type {response.type_url!r} without a nonce")
        type_url = TypeUrl(response.type_url)
        for resource in response.resources:
            if not (resource.name and resource.version) or resource.resource.type_url != type_url:
                raise InvalidResponse(f"a resource {resource.name!r} without name or version, or of another type")
        return Received(
            type_url=type_url,
            nonce=response.nonce,
            upserts=tuple(
                Resource(name=one.name, version=one.version, body=one.resource.value) for one in response.resources
            ),
            removed=tuple(response.removed_resources),
        )

    def acknowledge(self, received: Received) -> DeltaDiscoveryRequest:
        """Returns the request that says: taken."""
        held = self._held[received.type_url]
        for name in received.removed:
            held.pop(name, None)
        held.update({resource.name: resource.version for resource in received.upserts})
        return DeltaDiscoveryRequest(type_url=received.type_url, response_nonce=received.nonce)

    def reject(self, received: Received, message: str) -> DeltaDiscoveryRequest:
        """Returns the request that says: nothing of this was taken, because of `message`."""
        return DeltaDiscoveryRequest(
            type_url=received.type_url,
            response_nonce=received.nonce,
            error_detail=Status(code=INVALID_ARGUMENT, message=message),
        )

    @property
    def held(self) -> Mapping[TypeUrl, Mapping[str, str]]:
        """The versions held now, by type and name: what to open the next connection with."""
        return {type_url: MappingProxyType(versions) for type_url, versions in self._held.items()}
