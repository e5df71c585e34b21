"""The SDS resources of one proxy: its own certificate with the key, and whom it trusts. Pure."""

from collections.abc import Mapping

from federation.xds.resources import Resource


def secret_resources(chain_pem: bytes, key_pem: bytes, bundle_pem: bytes) -> Mapping[str, Resource]:
    """Returns the secrets by name: `chain_pem` is leaf and intermediate, `bundle_pem` the root or roots."""
    raise NotImplementedError
