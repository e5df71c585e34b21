"""What an Envoy is started with: who it is and where its control plane is; all else comes over ADS. Pure."""

from collections.abc import Sequence

from federation.model import Locality
from trust.spiffe import SpiffeId


def bootstrap(
    node_id: str,
    locality: Locality,
    *,
    address: str,
    control_addresses: Sequence[tuple[str, int]],
    control_dns_name: str,
    control_spiffe_id: SpiffeId,
    root_pem_path: str,
    token_path: str,
) -> dict[str, object]:
    """Returns Envoy's bootstrap, to be written as JSON. `address` is where its admin port (15000) listens."""
    raise NotImplementedError


def token_file(token: str) -> str:
    """Returns the content of the file at `token_path`: Envoy reads a new one for the next stream."""
    raise NotImplementedError
