"""What an Envoy is started with: who it is and where its control plane is; all else comes over ADS. Pure.

The control plane is reached by `envoy_grpc` with HTTP/2 keepalive: a frozen one is noticed in 1.4 s and a second
replica takes over in 0.1 s. The join token goes from its file straight into the stream's headers (credential injector);
the next stream reads a file that was replaced. Whom to trust as control plane is a watched file as well, so that a new
root reaches a proxy that is cut off from all control planes of the old one.
"""

import json
from collections.abc import Sequence
from pathlib import PurePath

from federation.model import PROXY_ADMIN_PORT, Locality, PodKey
from federation.names import TRUST_BUNDLE_SECRET, parse_node
from trust.spiffe import SpiffeId

TRUST_BUNDLE_FILE = PurePath("proxy-trust", "trust-bundle.json")
"""Where a control plane keeps, within its data directory, the file at `trust_bundle_path` for its proxies: in a
directory of its own, since Envoy reads the file again whenever anything there is renamed."""

_TOKEN = "token"  # noqa: S105 - the name of a secret, not a secret
_MAX_CONNECTIONS = 50_000  # from applications and peers together; a runaway stops here and not at the memory's end
_TYPE = "type.googleapis.com/envoy."

_STATS = (
    # What an operator asks of a proxy; the rest would cost more memory than the configuration itself.
    r"(server|listener_manager|cluster_manager|control_plane|overload)\..*",
    r"cluster\.xds\..*",
    r"cluster\..*\.(membership_.*|upstream_cx_(total|active|connect_fail)|upstream_rq_(total|active|retry.*|[1-5]xx))",
    r"cluster\..*\.(outlier_detection\.ejections_(active|enforced_total)|update_(success|rejected)|health_check\..*)",
    r"(http|tcp)\..*\.downstream_(cx|rq)_(total|active|[1-5]xx)",
    r".*\.(rbac\.(allowed|denied)|ssl\.(handshake|connection_error|fail_verify_.*)|init_fetch_timeout)",
)


def bootstrap(
    node_id: str,
    locality: Locality,
    *,
    address: str,
    control_addresses: Sequence[tuple[str, int]],
    control_dns_name: str,
    control_spiffe_id: SpiffeId,
    trust_bundle_path: str,
    token_path: str,
) -> dict[str, object]:
    """Returns Envoy's bootstrap, to be written as JSON.

    `address` is where the admin port (15000) listens; `control_addresses` are all replicas; `trust_bundle_path` and
    `token_path` are files as `trust_bundle_file` and `token_file` make them, replaced by renaming and read again at
    once. Raises ValueError for a node id that `names` did not make.
    """
    node = parse_node(node_id)
    if node is None:
        raise ValueError(f"{node_id!r} is not a node id")
    # What a gateway carries is counted where it comes from.
    is_counted = isinstance(node[1], PodKey)
    return {
        "node": {
            "id": node_id,
            "cluster": node[0],
            "locality": {"region": locality.region, "zone": locality.zone},
            "metadata": {"address": address},  # where a gateway listens; a sidecar's pod is known by its node id
        },
        "admin": {"address": _address(address, PROXY_ADMIN_PORT)},
        "bootstrap_extensions": [_extension("envoy.bootstrap.internal_listener", _INTERNAL_LISTENER)],
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": _control_service(control_dns_name)}],
            },
            "cds_config": _ADS,
            "lds_config": _ADS,
        },
        "cluster_manager": {"load_stats_config": _load_reports(control_dns_name)} if is_counted else {},
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {"endpoint": {"address": _address(host, port)}} for host, port in control_addresses
                                ]
                            }
                        ],
                    },
                    "transport_socket": _control_tls(control_dns_name, control_spiffe_id, trust_bundle_path),
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _control_http(token_path)
                    },
                }
            ]
        },
        "stats_config": {
            "stats_matcher": {"inclusion_list": {"patterns": [{"safe_regex": {"regex": regex}} for regex in _STATS]}}
        },
        "overload_manager": {
            "resource_monitors": [
                _extension(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=_MAX_CONNECTIONS,
                )
            ]
        },
    }


def token_file(token: str) -> str:
    """Returns the content of the file at `token_path`."""
    secret = {
        "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.Secret",
        "name": _TOKEN,
        "generic_secret": {"secret": {"inline_string": token}},
    }
    return json.dumps({"resources": [secret]})


def trust_bundle_file(bundle_pem: bytes) -> str:
    """Returns the content of the file at `trust_bundle_path`: the roots below which a control plane is believed."""
    secret = {
        "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.Secret",
        "name": TRUST_BUNDLE_SECRET,
        "validation_context": {"trusted_ca": {"inline_string": bundle_pem.decode()}},
    }
    return json.dumps({"resources": [secret]})


_INTERNAL_LISTENER = "extensions.bootstrap.internal_listener.v3.InternalListener"
# Without 0 s, an Envoy that has no control plane calls itself LIVE after 15 s, with no configuration at all.
_ADS = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}


def _control_service(dns_name: str) -> dict[str, object]:
    return {
        "cluster_name": "xds",
        "authority": dns_name,
        "retry_policy": {"retry_back_off": {"base_interval": "0.2s", "max_interval": "2s"}},
    }


def _load_reports(dns_name: str) -> dict[str, object]:
    return {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": _control_service(dns_name)}],
    }


def _control_tls(dns_name: str, identity: SpiffeId, trust_bundle_path: str) -> dict[str, object]:
    return _extension(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        sni=dns_name,
        common_tls_context={
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": ["h2"],
            "combined_validation_context": {
                "default_validation_context": {
                    "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": identity}}],
                },
                "validation_context_sds_secret_config": {
                    "name": TRUST_BUNDLE_SECRET,
                    "sds_config": _watched_file(trust_bundle_path),
                },
            },
        },
    )


def _control_http(token_path: str) -> dict[str, object]:
    token = {"name": _TOKEN, "sds_config": _watched_file(token_path)}
    generic = _extension(
        "envoy.http.injected_credentials.generic",
        "extensions.http.injected_credentials.generic.v3.Generic",
        credential=token,
        header="authorization",
        header_value_prefix="Bearer ",
    )
    injector = _extension(
        "token",
        "extensions.filters.http.credential_injector.v3.CredentialInjector",
        overwrite=True,
        credential=generic,
    )
    codec = _extension("codec", "extensions.filters.http.upstream_codec.v3.UpstreamCodec")
    return {
        "@type": f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {
            "http2_protocol_options": {"connection_keepalive": {"interval": "1s", "timeout": "1s"}}
        },
        "http_filters": [injector, codec],
    }


def _watched_file(path: str) -> dict[str, object]:
    """Returns where SDS reads a file, again whenever something is renamed in its directory."""
    source = {"path": path, "watched_directory": {"path": str(PurePath(path).parent)}}
    return {"path_config_source": source, "resource_api_version": "V3"}


def _extension(name: str, kind: str, **config: object) -> dict[str, object]:
    return {"name": name, "typed_config": {"@type": f"{_TYPE}{kind}", **config}}


def _address(host: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": port}}
