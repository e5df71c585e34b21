"""One stream to one peer, through one of its gateways, until it ends, falls silent or has lived long enough.

Three tasks: one reads (so that signs of life are never held up by etcd), one keeps what came, one writes the answers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import timedelta

import grpc
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from federation.freshness import STALE_AFTER
from federation.model import GatewayAddress
from federation.offer import FEDERATION_METHOD, FEDERATION_SERVICE
from federation.xds.client import DeltaClient, InvalidResponse, Received
from federation.xds.resources import TypeUrl
from trust.issuance import X509Svid

TYPES = (TypeUrl.MEMBER, TypeUrl.EXPORT, TypeUrl.BEAT)

_MAX_RESPONSE = 256 * 1024 * 1024
"""Bytes: a first response holds all that a peer offers; 100,000 endpoints are some 20 MB. gRPC's own limit is 4 MB."""
_MOST_WAITING = 8
"""Responses not kept yet. A peer sends one of a type and waits for the answer: more is no peer of ours."""
_CLOSE_TIMEOUT = timedelta(seconds=1)

Call = grpc.aio.StreamStreamCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]
Keep = Callable[[Received], Awaitable[str]]
"""Takes what came; returns why it is refused, or nothing."""


class StreamEnded(Exception):
    """There is no stream to the peer (any more); the message says why."""


def open_channel(gateway: GatewayAddress, *, server_name: str, svid: X509Svid, trust_bundle: bytes) -> grpc.aio.Channel:
    """Returns a channel to the control plane `server_name` behind a gateway, by mutual TLS. It connects when used."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=trust_bundle, private_key=svid.key_pem, certificate_chain=svid.certificate_chain_pem
    )
    host = f"ipv6:[{gateway.address}]" if ":" in gateway.address else f"ipv4:{gateway.address}"
    return grpc.aio.secure_channel(
        f"{host}:{gateway.port}",
        credentials,
        options=(
            ("grpc.ssl_target_name_override", server_name),  # also the SNI by which the gateway finds the control plane
            ("grpc.default_authority", server_name),
            # A connection of its own, with no back-off remembered from the attempt before.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", _MAX_RESPONSE),
            ("grpc.max_send_message_length", -1),
        ),
    )


async def listen(
    channel: grpc.aio.Channel,
    *,
    node: Node,
    held: Mapping[TypeUrl, Mapping[str, str]],
    on_sign: Callable[[], None],
    keep: Keep,
    lifetime: timedelta,
) -> None:
    """Listens until the stream ends; closes the channel. Raises StreamEnded, and whatever `keep` raises.

    `held` are the versions that we have, by type and name; `on_sign` is called at each sign of life. Returns after
    `lifetime`, so that the next connection is made with a newer certificate.
    """
    session = _Session(on_sign, keep)
    try:
        async with asyncio.timeout(lifetime.total_seconds()) as life:
            await session.run(channel, node, held)
    except TimeoutError:
        if not life.expired():
            raise
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT.total_seconds()):
                await channel.close()


class _Session:
    """The queues between the three tasks of one stream."""

    def __init__(self, on_sign: Callable[[], None], keep: Keep) -> None:
        self._on_sign = on_sign
        self._keep = keep
        self._client = DeltaClient(TYPES)
        self._incoming: asyncio.Queue[Received] = asyncio.Queue(_MOST_WAITING)
        self._outgoing: asyncio.Queue[DeltaDiscoveryRequest] = asyncio.Queue()

    async def run(self, channel: grpc.aio.Channel, node: Node, held: Mapping[TypeUrl, Mapping[str, str]]) -> None:
        for request in self._client.open(held, node):
            self._outgoing.put_nowait(request)
        method = channel.stream_stream(
            f"/{FEDERATION_SERVICE}/{FEDERATION_METHOD}",
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )
        call: Call = method()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(call))
                tasks.create_task(self._keep_all())
                # Not a task of its own: see `propagate_cancellation` about groups that only wait for their tasks.
                await self._read(call)
        finally:
            call.cancel()

    async def _read(self, call: Call) -> None:
        while True:
            try:
                async with asyncio.timeout(STALE_AFTER.total_seconds()):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    raise StreamEnded(f"ended by the peer: {await _reason(call)}")
                self._on_sign()
                received = self._client.receive(response)
                if received.type_url is TypeUrl.BEAT:
                    self._outgoing.put_nowait(self._client.acknowledge(received))
                else:
                    self._incoming.put_nowait(received)
            except TimeoutError as error:
                raise StreamEnded(f"silent for {STALE_AFTER.total_seconds():g} s") from error
            except grpc.aio.AioRpcError as error:
                raise StreamEnded(_say(error.code(), error.details())) from error
            except InvalidResponse as error:
                raise StreamEnded(f"not understood: {error}") from error
            except asyncio.QueueFull as error:
                raise StreamEnded("the peer sends without waiting for answers") from error

    async def _keep_all(self) -> None:
        while True:
            received = await self._incoming.get()
            refusal = await self._keep(received)
            answer = self._client.reject(received, refusal) if refusal else self._client.acknowledge(received)
            self._outgoing.put_nowait(answer)

    async def _write(self, call: Call) -> None:
        while True:
            request = await self._outgoing.get()
            try:
                async with asyncio.timeout(STALE_AFTER.total_seconds()):
                    await call.write(request)
            except TimeoutError as error:
                raise StreamEnded(f"takes nothing for {STALE_AFTER.total_seconds():g} s") from error
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the stream is over, and the reader says why


async def _reason(call: Call) -> str:
    async with asyncio.timeout(STALE_AFTER.total_seconds()):
        return _say(await call.code(), await call.details())


def _say(code: grpc.StatusCode, details: str | None) -> str:
    return f"{code.name.lower().replace('_', ' ')}: {details}" if details else code.name.lower().replace("_", " ")
