"""One connection to the control plane of a peer, whose certificate is looked at here and not by gRPC.

    gRPC ── unix socket of ours, plain ── relay ── TLS 1.3, mutual ── gateway of the peer ── its control plane

gRPC in Python shows a client no certificate of its server and compares names alone, in ways that the name constraints
of an intermediate do not hold: it takes a common name where the certificate has no DNS name, and a DNS name up to its
first NUL. Both made the stolen authority of one cluster pass for the control plane of another (tests/containment).
Here OpenSSL checks the chain, and we compare the one SPIFFE id, whole.
"""

import asyncio
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import grpc

from federation.model import GatewayAddress
from federation.peering.freshness import SHORTEST_ANSWER
from trust.certificates import CertificateRefused, load_certificate, spiffe_identity
from trust.issuance import X509Svid
from trust.spiffe import ClusterName, MeshDomain, control_dns_name, control_identity, spiffe_id

LARGEST_RESPONSE = 16 * 1024 * 1024
"""Bytes. What a peer offers comes in portions of a megabyte, or one record; gRPC refuses more before it is read."""

_CLOSE_LIMIT = timedelta(seconds=1)
_CHUNK = 256 * 1024  # bytes read at once


class PeerUnavailable(Exception):
    """Nobody answers there, or not the control plane that was called; the message says which."""


@asynccontextmanager
async def open_channel(
    gateway: GatewayAddress,
    *,
    peer: ClusterName,
    domain: MeshDomain,
    svid: X509Svid,
    trust_bundle: bytes,
    limit: timedelta = SHORTEST_ANSWER,
) -> AsyncIterator[grpc.aio.Channel]:
    """Gives a channel to the control plane of `peer`, whose identity has been proved; raises PeerUnavailable.

    `limit` is how long it may take to connect.
    The channel lives as long as its one connection: it does not connect again.
    """
    try:
        async with asyncio.timeout(limit.total_seconds()):
            reader, writer = await asyncio.open_connection(
                gateway.address,
                gateway.port,
                ssl=_context(svid, trust_bundle),
                server_hostname=control_dns_name(peer, domain),  # also how the gateway finds the control plane
                limit=_CHUNK,
            )
    except TimeoutError:
        raise PeerUnavailable(f"unavailable: no connection within {limit.total_seconds():g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise PeerUnavailable(f"not believed: its certificate is refused: {error.verify_message}") from error
    except OSError as error:
        raise PeerUnavailable(f"unavailable: {error.strerror or error}") from error
    try:
        _check(writer, peer, domain)
        async with _relay(reader, writer) as path:
            channel = grpc.aio.insecure_channel(f"unix:{path}", options=_options(control_dns_name(peer, domain)))
            try:
                yield channel
            finally:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CLOSE_LIMIT.total_seconds()):
                        await channel.close()
    finally:
        writer.transport.abort()  # nobody waits for the last words of a peer


def _options(authority: str) -> tuple[tuple[str, str | int], ...]:
    return (
        ("grpc.default_authority", authority),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", LARGEST_RESPONSE),
        ("grpc.max_send_message_length", -1),
    )


def _context(svid: X509Svid, trust_bundle: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False
    context.load_verify_locations(cadata=trust_bundle.decode())
    context.set_alpn_protocols(["h2"])
    # Python reads a key from files alone: this one has no name and is never written to a disk.
    with open(os.memfd_create("svid"), "wb") as file:
        file.write(svid.key_pem + svid.certificate_chain_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def _check(writer: asyncio.StreamWriter, peer: ClusterName, domain: MeshDomain) -> None:
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    expected = control_identity(peer)
    try:
        found = spiffe_identity(load_certificate(ssl.DER_cert_to_PEM_cert(shown).encode()), domain)
    except CertificateRefused as error:
        raise PeerUnavailable(f"not believed: {error.message}") from error
    if found != expected:
        message = f"not believed: it is {spiffe_id(found, domain)}, and not the control plane of {peer}"
        raise PeerUnavailable(message)


@asynccontextmanager
async def _relay(far_reader: asyncio.StreamReader, far_writer: asyncio.StreamWriter) -> AsyncIterator[Path]:
    """Gives the path of a socket whose first connection is carried over the far one; nobody else reaches it.

    The sockets are ours from the first moment to the last, whenever the end comes: a server of asyncio leaves a
    connection open that came as its handler was cancelled.
    """
    loop = asyncio.get_running_loop()
    carrying: list[asyncio.Task[None]] = []

    async def carry(near: socket.socket) -> None:
        near_reader, near_writer = await asyncio.open_connection(sock=near, limit=_CHUNK)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(near_reader, far_writer))
                both.create_task(_copy(far_reader, near_writer))
        finally:
            near_writer.transport.abort()

    def take() -> None:
        try:
            near, _ = listener.accept()
        except OSError:
            return  # it gave up before it was taken
        near.setblocking(False)
        close_listener()  # it takes one connection: another would speak in our name
        owned.callback(near.close)
        carrying.append(loop.create_task(carry(near)))

    def close_listener() -> None:
        if listener.fileno() >= 0:
            loop.remove_reader(listener)
            listener.close()

    with ExitStack() as owned:
        folder = owned.enter_context(tempfile.TemporaryDirectory(prefix="isthmus-"))  # of mode 0700
        path = Path(folder) / "peer"
        listener = owned.enter_context(socket.socket(socket.AF_UNIX))
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(1)
        loop.add_reader(listener, take)
        owned.callback(close_listener)
        try:
            yield path
        finally:
            for task in carrying:
                task.cancel()
            if carrying:
                await asyncio.wait(carrying)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carries one direction to its end, and then ends the other side's connection."""
    try:
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass  # broken by the other end: what gRPC sees is a connection that ended
    finally:
        writer.close()
