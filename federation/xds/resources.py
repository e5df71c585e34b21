"""What is delivered: named, versioned, already encoded resources of xDS types. Pure values."""

import hashlib
from collections.abc import Mapping
from enum import StrEnum

import msgspec


class TypeUrl(StrEnum):
    """The resource types that we deliver: Envoy's, and our own between control planes."""

    CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
    ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
    SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a type's name
    EXTENSION = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
    MEMBER = "type.googleapis.com/isthmus.federation.v1.MemberCluster"
    EXPORT = "type.googleapis.com/isthmus.federation.v1.ExportedService"
    BEAT = "type.googleapis.com/isthmus.federation.v1.Beat"
    TRUST_BUNDLE = "type.googleapis.com/isthmus.federation.v1.TrustBundle"
    TRUST_STATEMENT = "type.googleapis.com/isthmus.federation.v1.TrustStatement"
    TRUST_GRANT = "type.googleapis.com/isthmus.federation.v1.Grant"


class Resource(msgspec.Struct, frozen=True):
    """One resource. `body` is the deterministic encoding of the message; `version` is a hash of it.

    Where the same bytes must be sent once more, something is added to the version.
    """

    name: str
    version: str
    body: bytes


ResourceSet = Mapping[TypeUrl, Mapping[str, Resource]]
"""All that one receiver should have, by type and name. A type that is absent has no resources."""


def make_resource(name: str, body: bytes) -> Resource:
    """Makes a resource whose version is the hash of its bytes: the same bytes are never sent twice."""
    return Resource(name=name, version=hashlib.blake2b(body, digest_size=8).hexdigest(), body=body)
