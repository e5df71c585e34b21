"""Turns what a compiler made into a bootstrap that needs no control plane: for `envoy --mode validate` and data paths.

What would come by EDS, RDS, ECDS and SDS stands inline; nothing else is changed.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from federation.model import PROXY_ADMIN_PORT
from federation.xds.resources import Resource, ResourceSet, TypeUrl

_MESSAGES: Mapping[TypeUrl, type[Message]] = {
    TypeUrl.CLUSTER: cluster_pb2.Cluster,
    TypeUrl.ENDPOINTS: endpoint_pb2.ClusterLoadAssignment,
    TypeUrl.LISTENER: listener_pb2.Listener,
    TypeUrl.ROUTES: route_pb2.RouteConfiguration,
    TypeUrl.SECRET: secret_pb2.Secret,
    TypeUrl.EXTENSION: extension_pb2.TypedExtensionConfig,
}


def parse(type_url: TypeUrl, resource: Resource) -> Message:
    """Returns the message that a resource encodes."""
    return _MESSAGES[type_url].FromString(resource.body)


def as_values(resources: ResourceSet) -> dict[TypeUrl, dict[str, Any]]:
    """Returns resources as JSON-able values, by type and name."""
    return {
        type_url: {
            name: MessageToDict(parse(type_url, resource), preserving_proto_field_name=True)
            for name, resource in of_type.items()
        }
        for type_url, of_type in resources.items()
    }


def static_bootstrap(
    resources: ResourceSet, secrets: Mapping[str, Resource], *, node: str, address: str
) -> dict[str, Any]:
    """Returns a bootstrap with everything inline; the admin port listens on `address`."""
    values = as_values({**resources, TypeUrl.SECRET: secrets})
    apart = _Apart(values.get(TypeUrl.ROUTES, {}), values.get(TypeUrl.EXTENSION, {}))
    assignments = values.get(TypeUrl.ENDPOINTS, {})
    clusters = []
    for name, cluster in values.get(TypeUrl.CLUSTER, {}).items():
        if cluster.pop("eds_cluster_config", None):
            cluster |= {"type": "STATIC", "load_assignment": assignments[name]}
        clusters.append(_inlined(cluster, apart))
    return {
        "node": {"id": node, "cluster": node.split("/")[0]},
        "admin": {"address": {"socket_address": {"address": address, "port_value": PROXY_ADMIN_PORT}}},
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
                },
            }
        ],
        "static_resources": {
            "clusters": clusters,
            "listeners": [_inlined(listener, apart) for listener in values.get(TypeUrl.LISTENER, {}).values()],
            "secrets": list(values[TypeUrl.SECRET].values()),
        },
    }


class _Apart(NamedTuple):
    """What stands in resources of its own, by name."""

    routes: Mapping[str, Any]
    extensions: Mapping[str, Any]


def _inlined(value: Any, apart: _Apart) -> Any:
    match value:
        case {"rds": {"route_config_name": name}}:
            rest = {key: _inlined(item, apart) for key, item in value.items() if key != "rds"}
            return {**rest, "route_config": json.loads(json.dumps(apart.routes[name]))}
        case {"name": name, "config_discovery": _}:
            return apart.extensions[name]
        case dict():
            return {key: _inlined(item, apart) for key, item in value.items() if key != "sds_config"}
        case list():
            return [_inlined(item, apart) for item in value]
        case _:
            return value
