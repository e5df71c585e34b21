"""Doors that look at no handshake: they ask for a token, or for a signature of the root. A thief has neither."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import grpc
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from federation.model import ADS_PORT, CONTROL_ADMIN_PORT, MemberCluster, NetworkName
from federation.peering.membership import check_membership
from federation.xds.resources import TypeUrl
from federation.xds.server import ADS_SERVICE
from tests.containment.thief import Authority
from tests.support.addresses import free_address
from tests.support.control import Control, join, pod, start_control, until
from tests.support.trust import DOMAIN, EAST, WEST, init_root, make_authorities
from trust.certificates import CertificateRefused, certificate_pem, make_intermediate, make_root, new_key
from trust.root import Root
from trust.spiffe import ClusterName, control_dns_name, control_identity, spiffe_id

NOW = datetime.now(UTC)
SOUTH = ClusterName("south")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "root", now=datetime.now(UTC))


@pytest.fixture
async def west(tmp_path: Path, root: Root) -> AsyncIterator[Control]:
    async with start_control(tmp_path / "west", "west") as control:
        control.write("pods.yaml", pod("cart-1", "cart", free_address()), pod("pay-1", "pay", free_address()))
        await join(root, control)
        yield control


def stolen() -> Authority:
    authority = make_authorities(EAST, now=NOW)[EAST]
    return Authority(certificate=authority.certificate, key=authority.key)


def tokens(good: str, admin: str) -> Mapping[str, str]:
    """Returns what a thief may show instead of a join token."""
    east = stolen()
    return {
        "nothing": "",
        "only the word": "Bearer",
        "another scheme": f"Basic {base64.b64encode(good.encode()).decode()}",
        "a certificate": f"Bearer {base64.b64encode(east.encoded).decode()}",
        "a JWT of the stolen key": f"Bearer {jwt(east)}",
        "a SPIFFE id": f"Bearer {spiffe_id(control_identity(WEST), DOMAIN)}",
        "a token that nobody made": "Bearer isthmus-" + "A" * 43,
        "the digest of a good one": f"Bearer {hashlib.sha256(good.encode()).hexdigest()}",
        "a good one and more": f"Bearer {good}x",
        "a good one cut off": f"Bearer {good[:-1]}",
        "a good one in capitals": f"Bearer {good.upper()}",
        "two tokens": f"Bearer {good},{good}",
        "a path": "Bearer isthmus-../../v1/tokens/" + "A" * 28,
        "much": "Bearer " + "A" * 5000,
        "the admin token": f"Bearer {admin}",
    }


def jwt(authority: Authority) -> str:
    """Returns a JWT for the control plane of west, with the stolen chain in its head."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    head = {"alg": "ES256", "typ": "JWT", "x5c": [base64.b64encode(authority.encoded).decode()]}
    signed = f"{part(head)}.{part({'sub': spiffe_id(control_identity(WEST), DOMAIN), 'aud': 'isthmus'})}"
    signature = authority.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256()))
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode()}"


async def test_proxies_are_known_by_tokens_alone(west: Control, root: Root) -> None:
    async with west.client() as admin:
        good = (await admin.create_token("shop", "cart")).token
    credentials = grpc.ssl_channel_credentials(certificate_pem(root.certificate))
    name = ("grpc.ssl_target_name_override", control_dns_name(WEST, DOMAIN))
    admin_token = (west.data / "admin-token").read_text().strip()
    async with grpc.aio.secure_channel(f"{west.address}:{ADS_PORT}", credentials, options=[name]) as channel:
        method = channel.stream_stream(
            f"/{ADS_SERVICE}/DeltaAggregatedResources",
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )

        async def code(authorization: str, node: str = "west/shop/cart-1") -> grpc.StatusCode | None:
            """Returns why a stream was refused; None when it was served."""
            claims = (("x-forwarded-client-cert", f"URI={spiffe_id(control_identity(WEST), DOMAIN)}"),)
            call = method(metadata=(*claims, *((("authorization", authorization),) if authorization else ())))
            await call.write(DeltaDiscoveryRequest(node=Node(id=node), type_url=TypeUrl.CLUSTER))
            try:
                answer = await call.read()
            except grpc.aio.AioRpcError as error:
                return error.code()
            if isinstance(answer, DeltaDiscoveryResponse):
                call.cancel()
                return None
            return await call.code()

        async def verdict(authorization: str, node: str = "west/shop/cart-1") -> grpc.StatusCode | None:
            """Returns what `code` does, once it is more than "later": a pod may not be seen yet."""
            return await until(
                lambda: code(authorization, node), lambda found: found is not grpc.StatusCode.UNAVAILABLE
            )

        assert await verdict(f"Bearer {good}") is None
        for what, shown in tokens(good, admin_token).items():
            assert await verdict(shown) is grpc.StatusCode.UNAUTHENTICATED, what
        for node in (
            "west/shop/pay-1",
            "west/gateway-1",
            "east/shop/cart-1",
            "west/isthmus-system/control",
            "",
            "west",
        ):
            assert await verdict(f"Bearer {good}", node) is grpc.StatusCode.PERMISSION_DENIED, node


async def test_the_admin_api_knows_its_own_token_alone(west: Control) -> None:
    url = f"http://{west.address}:{CONTROL_ADMIN_PORT}/v1/status"
    async with west.client() as admin:
        await admin.status()
        join_token = (await admin.create_token("shop", "cart")).token
    claims = {"x-forwarded-client-cert": f"URI={spiffe_id(control_identity(WEST), DOMAIN)}"}
    real = (west.data / "admin-token").read_text().strip()
    shown = {what: token for what, token in tokens(join_token, real).items() if what != "the admin token"}
    shown |= {
        "a join token": f"Bearer {join_token}",
        "its beginning": f"Bearer {real[:-1]}",
        "its end": f"Bearer {real}=",
    }
    async with aiohttp.ClientSession() as session:
        for what, token in shown.items():
            async with session.get(url, headers={**claims, "authorization": token}) as response:
                assert response.status == 401, what


def test_no_member_is_introduced_by_a_stolen_authority() -> None:
    """A record of a member is believed for the certificate in it, which a root must have signed for that name."""
    authorities = make_authorities(EAST, SOUTH, now=NOW)
    east, south = authorities[EAST], authorities[SOUTH]

    def made(
        issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey, cluster: ClusterName = SOUTH
    ) -> x509.Certificate:
        return make_intermediate(
            issuer,
            key,
            public_key=new_key().public_key(),
            cluster=cluster,
            domain=DOMAIN,
            now=NOW,
            lifetime=timedelta(hours=1),
        )

    root_key = new_key()
    other_root = make_root(root_key, DOMAIN, now=NOW, lifetime=timedelta(hours=1))
    north = ClusterName("north")
    bundle = certificate_pem(east.root)
    forged = {
        "signed by east": (SOUTH, made(east.certificate, east.key)),
        "signed by east, of a new member": (north, made(east.certificate, east.key, north)),
        "east's own": (SOUTH, east.certificate),
        "signed by another root": (SOUTH, made(other_root, root_key)),
        "south's own for another name": (north, south.certificate),
        "the root's": (SOUTH, east.root),
        "signed by the name of the root": (SOUTH, made(east.root, east.key)),
    }

    def check(name: ClusterName, *certificates: x509.Certificate) -> None:
        pem = b"".join(map(certificate_pem, certificates)).decode()
        member = msgspec.structs.replace(MemberCluster(name, NetworkName(name), "eu", ()), certificate=pem)
        check_membership(member, bundle, domain=DOMAIN, now=NOW)

    check(SOUTH, south.certificate)
    for name, certificate in forged.values():
        with pytest.raises(CertificateRefused):
            check(name, certificate)
        with pytest.raises(CertificateRefused):
            check(name, certificate, south.certificate)
