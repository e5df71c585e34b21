"""What a sidecar is told about others: where its workload's calls go. Pure."""

from federation.model import ProxyScope
from federation.view import MeshView
from federation.xds.resources import ResourceSet


def compile_outbound(view: MeshView) -> ResourceSet:
    """Returns what all sidecars of one audience share: clusters, endpoints, routes and the tunnels to peers."""
    raise NotImplementedError


def outbound_listeners(scope: ProxyScope) -> ResourceSet:
    """Returns the listeners of one sidecar: the HTTP proxy and one per declared TCP dependency."""
    raise NotImplementedError
