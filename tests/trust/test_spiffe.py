"""Identities are printed and parsed in one way, and no cluster's slice reaches into another's."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.spiffe import (
    ClusterName,
    Identity,
    InvalidName,
    MeshDomain,
    Namespace,
    ServiceAccount,
    any_identity_pattern,
    cluster_slice,
    is_dns_name,
    parse_cluster,
    parse_domain,
    parse_spiffe_id,
    spiffe_id,
)

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
clusters = labels.map(ClusterName)
domains = st.lists(labels, min_size=2, max_size=4).map(".".join).map(MeshDomain)
accounts = st.lists(labels, min_size=1, max_size=3).map(".".join).map(ServiceAccount)
identities = st.builds(Identity, cluster=clusters, namespace=labels.map(Namespace), account=accounts)

MESH = MeshDomain("mesh.test")


@given(identities, domains)
def test_parsing_what_was_printed_gives_the_same_identity(identity: Identity, domain: MeshDomain) -> None:
    text = spiffe_id(identity, domain)
    assert parse_spiffe_id(text, domain) == identity
    assert re.fullmatch(any_identity_pattern(domain), text)


@given(st.text() | st.text(alphabet="spiffe:/.nsa-mesht%é\n", max_size=60))
def test_text_that_parses_prints_as_itself(text: str) -> None:
    try:
        identity = parse_spiffe_id(text, MESH)
    except InvalidName:
        return
    assert spiffe_id(identity, MESH) == text


@given(identities, domains, domains)
def test_an_identity_of_another_mesh_is_refused(identity: Identity, domain: MeshDomain, other: MeshDomain) -> None:
    if domain == other:
        return
    with pytest.raises(InvalidName):
        parse_spiffe_id(spiffe_id(identity, domain), other)


@given(clusters, clusters, domains)
def test_no_slice_lies_within_another(one: ClusterName, other: ClusterName, domain: MeshDomain) -> None:
    if one != other:
        assert not cluster_slice(one, domain).endswith(f".{cluster_slice(other, domain)}")
        assert cluster_slice(one, domain) != cluster_slice(other, domain)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://mesh.test/ns/shop/sa/cart",
        "spiffe://.mesh.test/ns/shop/sa/cart",
        "spiffe://a.east.mesh.test/ns/shop/sa/cart",
        "spiffe://east.mesh.test/ns/shop/sa/cart/",
        "spiffe://east.mesh.test/ns/shop/sa/cart\n",
        "spiffe://east.mesh.test/ns/shop/sa/",
        "spiffe://east.mesh.test/ns/shop/../sa/cart",
        "spiffe://east.mesh.test/ns/shop/sa/c%61rt",
        "spiffe://east.mesh.test:443/ns/shop/sa/cart",
        "spiffe://user@east.mesh.test/ns/shop/sa/cart",
        "spiffe://East.mesh.test/ns/shop/sa/cart",
        "SPIFFE://east.mesh.test/ns/shop/sa/cart",
        "spiffe://east.mesh.test/ns/shop/sa/cart?x=1",
        "spiffe://east.mesh.test/ns/shop/sa/cart#x",
        "https://east.mesh.test/ns/shop/sa/cart",
        "spiffe://east.meshxtest/ns/shop/sa/cart",
    ],
)
def test_other_text_is_no_identity(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_spiffe_id(text, MESH)


@pytest.mark.parametrize("text", ["", "East", "a.b", "-a", "a-", "a_b", "a" * 64, "é", "a\n"])
def test_a_name_that_is_no_label_is_no_cluster(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_cluster(text)


@pytest.mark.parametrize("text", ["", "mesh", "mesh.", ".test", "a..b", "MESH.test", "mesh.test\n", "a." * 75 + "aa"])
def test_a_name_that_is_no_dns_name_is_no_domain(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_domain(text)


@given(st.text(max_size=300))
def test_a_dns_name_is_short_lower_case_and_has_no_empty_label(text: str) -> None:
    if is_dns_name(text):
        assert len(text) <= 253
        assert text == text.lower()
        assert all(0 < len(label) <= 63 for label in text.split("."))
