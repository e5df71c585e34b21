"""Names that cross a wire, and their inverses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.model import PodKey, ServiceKey
from federation.names import host_port, parse_upstream_label, service_sni, upstream_label
from trust.spiffe import ClusterName, InvalidName, Namespace, parse_domain

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)


@given(cluster=LABELS, zone=LABELS | st.just(""), namespace=LABELS, pod=LABELS)
def test_who_answered_is_read_as_it_was_written(cluster: str, zone: str, namespace: str, pod: str) -> None:
    written = upstream_label(ClusterName(cluster), zone, PodKey(Namespace(namespace), pod))
    assert parse_upstream_label(written) == (cluster, zone, namespace, pod)


def test_an_address_of_either_kind_goes_with_a_port() -> None:
    assert host_port("10.0.0.7", 443) == "10.0.0.7:443"
    assert host_port("fd00::7", 443) == "[fd00::7]:443"


def test_the_longest_names_still_fit_where_envoy_takes_a_server_name() -> None:
    longest = parse_domain("m" * 49 + ".org")
    key = ServiceKey(Namespace("n" * 63), "s" * 63)
    assert len(service_sni(ClusterName("c" * 63), key, 65535, longest)) <= 255
    with pytest.raises(InvalidName):
        parse_domain("m" * 50 + ".org")
