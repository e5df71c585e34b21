"""Names that cross a wire, and their inverses."""

from hypothesis import given
from hypothesis import strategies as st

from federation.model import PodKey
from federation.names import host_port, parse_upstream_label, upstream_label
from trust.spiffe import ClusterName, Namespace

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)


@given(cluster=LABELS, zone=LABELS | st.just(""), namespace=LABELS, pod=LABELS)
def test_who_answered_is_read_as_it_was_written(cluster: str, zone: str, namespace: str, pod: str) -> None:
    written = upstream_label(ClusterName(cluster), zone, PodKey(Namespace(namespace), pod))
    assert parse_upstream_label(written) == (cluster, zone, namespace, pod)


def test_an_address_of_either_kind_goes_with_a_port() -> None:
    assert host_port("10.0.0.7", 443) == "10.0.0.7:443"
    assert host_port("fd00::7", 443) == "[fd00::7]:443"
