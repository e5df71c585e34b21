"""What a sidecar is told about its own workload: who may come in on the mesh port, and where the app is. Pure."""

from federation.model import ProxyScope
from federation.view import InboundPort
from federation.xds.resources import ResourceSet
from trust.spiffe import MeshDomain


def compile_inbound(scope: ProxyScope, ports: tuple[InboundPort, ...], domain: MeshDomain) -> ResourceSet:
    """Returns the mesh port's listener, a filter chain per service port, and the clusters that lead to the app."""
    raise NotImplementedError
