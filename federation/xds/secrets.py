"""The SDS resources of one proxy: its own certificate with the key, and whom it trusts. Pure."""

from collections.abc import Mapping

from federation.names import TRUST_BUNDLE_SECRET, WORKLOAD_SECRET
from federation.xds.builders import encode
from federation.xds.resources import Resource
from federation.xds.tls import trust_bundle_secret, workload_secret


def secret_resources(chain_pem: bytes, key_pem: bytes, bundle_pem: bytes) -> Mapping[str, Resource]:
    """Returns the secrets by name: `chain_pem` is leaf and intermediate, `bundle_pem` the root or roots."""
    return {
        WORKLOAD_SECRET: encode(WORKLOAD_SECRET, workload_secret(chain_pem, key_pem)),
        TRUST_BUNDLE_SECRET: encode(TRUST_BUNDLE_SECRET, trust_bundle_secret(bundle_pem)),
    }
