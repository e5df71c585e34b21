"""How a cluster becomes a member: what it asks for, what it is granted, and what is refused."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trust.refusals import Refusal
from trust.spiffe import ClusterName, MeshDomain


class JoinRefused(Refusal):
    """A request or a grant that is not good."""


class GatewayAddress(msgspec.Struct, frozen=True, order=True):
    """Where other clusters reach an east-west gateway: an IP address and a port."""

    address: str
    port: int


class Introduction(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster as it is introduced to others."""

    name: ClusterName
    network: str
    region: str
    cloud: str = ""
    zones: tuple[str, ...] = ()
    gateways: tuple[GatewayAddress, ...] = ()


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="JoinRequest"):
    """What a cluster asks for. `csr` is PEM."""

    version: int
    id: str
    domain: MeshDomain
    cluster: Introduction
    csr: str
    created: datetime


class Grant(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="JoinGrant"):
    """What a cluster is given. `certificate` (its intermediate) and `root` are PEM; `signature` is the root's."""

    version: int
    request_id: str
    domain: MeshDomain
    cluster: ClusterName
    certificate: str
    root: str
    introductions: tuple[Introduction, ...]
    expires: datetime
    signature: str = ""


def make_join_request(
    key: ec.EllipticCurvePrivateKey, about: Introduction, *, domain: MeshDomain, now: datetime
) -> JoinRequest:
    """Makes a request with a new id."""
    raise NotImplementedError


def check_request(request: JoinRequest, *, domain: MeshDomain) -> ec.EllipticCurvePublicKey:
    """Returns the key that asks to become a member; raises JoinRefused."""
    raise NotImplementedError


def make_grant(
    request: JoinRequest,
    root_key: ec.EllipticCurvePrivateKey,
    *,
    certificate: x509.Certificate,
    root: x509.Certificate,
    introductions: Sequence[Introduction],
    expires: datetime,
) -> Grant:
    """Makes the signed answer to a request."""
    raise NotImplementedError


def check_grant(
    grant: Grant, request: JoinRequest, *, public_key: ec.EllipticCurvePublicKey, now: datetime
) -> tuple[x509.Certificate, x509.Certificate]:
    """Returns (intermediate, root) of a grant that answers our own `request`; raises JoinRefused."""
    raise NotImplementedError


def encode(value: JoinRequest | Grant) -> bytes:
    """Prints a request or a grant as indented JSON: the file that operators exchange."""
    raise NotImplementedError


def decode_request(text: bytes | str) -> JoinRequest:
    """Reads a request, JSON or YAML; raises JoinRefused."""
    raise NotImplementedError


def decode_grant(text: bytes | str) -> Grant:
    """Reads a grant, JSON or YAML; raises JoinRefused."""
    raise NotImplementedError
