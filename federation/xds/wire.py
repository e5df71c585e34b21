"""Encodes delta responses by joining the bytes of resources that are encoded already. Pure.

A resource is encoded once, for all the proxies that get it; protobuf's own classes would copy and encode it again for
each of them, which is what a storm of reconnecting proxies is made of. Field numbers: envoy/service/discovery/v3/
discovery.proto and google/protobuf/any.proto.
"""

from collections.abc import Iterable

from federation.xds.resources import Resource, make_resource

_LENGTH_DELIMITED = 2

_RESPONSE_RESOURCES, _RESPONSE_TYPE_URL, _RESPONSE_NONCE, _RESPONSE_REMOVED = 2, 4, 5, 6
_RESOURCE_VERSION, _RESOURCE_BODY, _RESOURCE_NAME = 1, 2, 3
_ANY_TYPE_URL, _ANY_VALUE = 1, 2
_ENDPOINTS_CLUSTER_NAME = 1


def encode_response(type_url: str, nonce: str, resources: Iterable[Resource], removed: Iterable[str]) -> bytes:
    """Returns an encoded DeltaDiscoveryResponse."""
    type_bytes = type_url.encode()
    any_type = _field(_ANY_TYPE_URL, type_bytes)
    parts = []
    for resource in resources:
        body = any_type + _field(_ANY_VALUE, resource.body)
        parts.append(
            _field(
                _RESPONSE_RESOURCES,
                _field(_RESOURCE_VERSION, resource.version.encode())
                + _field(_RESOURCE_BODY, body)
                + _field(_RESOURCE_NAME, resource.name.encode()),
            )
        )
    parts.append(_field(_RESPONSE_TYPE_URL, type_bytes))
    parts.append(_field(_RESPONSE_NONCE, nonce.encode()))
    parts.extend(_field(_RESPONSE_REMOVED, name.encode()) for name in removed)
    return b"".join(parts)


def empty_endpoints(name: str) -> Resource:
    """Returns a ClusterLoadAssignment without endpoints."""
    return make_resource(name, _field(_ENDPOINTS_CLUSTER_NAME, name.encode()))


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
