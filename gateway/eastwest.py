"""What an east-west gateway is told: which pods it may open tunnels to, and where the federation stream goes. Pure."""

from collections.abc import Mapping, Sequence

from federation.model import ExportedService, ProxyScope, ServiceKey
from federation.xds.resources import ResourceSet
from trust.spiffe import MeshDomain


def compile_gateway(
    scope: ProxyScope,
    exported: Mapping[ServiceKey, ExportedService],
    *,
    control_addresses: Sequence[str],
    domain: MeshDomain,
) -> ResourceSet:
    """Returns the one listener of the gateway and an upstream per exported service.

    `exported` is what this cluster offers, `control_addresses` the control planes whose FEDERATION_PORT peers reach.
    """
    raise NotImplementedError
