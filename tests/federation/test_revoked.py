"""Who is revoked is no endpoint, no peer, no caller and no part of what is offered, whatever else the picture holds."""

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.model import Endpoint, Locality, MemberCluster, NetworkName, ServiceKey
from federation.offers import Path
from federation.revoked import Revoked, severing_epoch, tunnel_callers
from federation.snapshot import Change, Replace, Section, Snapshot, apply
from federation.view import MeshView, resolve
from federation.xds.tls import members_only, revoked_matcher
from tests.support.two_clusters import DOMAIN, Member, east_and_west, far, key
from trust.bundle import Revocation, is_revoked, make_revocation
from trust.spiffe import ClusterName, Identity, Namespace, ServiceAccount

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLUSTERS, NAMESPACES, ACCOUNTS = ("east", "west", "north"), ("shop", "bank"), ("cart", "client")
subjects = st.one_of(
    st.sampled_from(CLUSTERS),
    st.builds("{}/{}".format, st.sampled_from(NAMESPACES), st.sampled_from(ACCOUNTS)),
    st.builds("{}/{}@{}".format, st.sampled_from(NAMESPACES), st.sampled_from(ACCOUNTS), st.sampled_from(CLUSTERS)),
)
revocations = st.lists(
    st.builds(make_revocation, subjects, at=st.just(NOW), sever=st.booleans()),
    max_size=6,
    unique_by=lambda one: one.subject,
).map(tuple)
identities = st.builds(
    Identity,
    st.sampled_from(CLUSTERS).map(ClusterName),
    st.sampled_from(NAMESPACES).map(Namespace),
    st.sampled_from(ACCOUNTS).map(ServiceAccount),
)


def revoking(one: Member, *what: str, sever: bool = False) -> Snapshot:
    values = {subject: make_revocation(subject, at=NOW, sever=sever) for subject in what}
    return apply(one.snapshot, [Replace(Section.REVOCATIONS, values)])


def seen(one: Member, snapshot: Snapshot) -> MeshView:
    return resolve(snapshot, one.settings, one.pod_scope("client").audience)


@given(revocations, identities)
def test_endpoints_are_spared_as_identities_are_not_revoked(revoked: tuple[Revocation, ...], who: Identity) -> None:
    endpoints = (Endpoint("10.0.0.1", "pod", who.account, Locality()),)
    spared = Revoked(revoked).spare(endpoints, cluster=who.cluster, key=ServiceKey(who.namespace, "any"))
    assert spared == (() if is_revoked(revoked, who) else endpoints)


@given(revocations, identities)
def test_identities_are_covered_as_they_are_revoked(revoked: tuple[Revocation, ...], who: Identity) -> None:
    assert Revoked(revoked).covers(who) == is_revoked(revoked, who)


@given(revocations)
def test_rules_depend_on_who_is_revoked_and_on_no_order(revoked: tuple[Revocation, ...]) -> None:
    rules = members_only(DOMAIN, revoked=revoked)
    assert rules == members_only(DOMAIN, revoked=revoked[::-1])
    _, is_allowed = rules.policies["members"].principals[0].and_ids.ids
    assert len(is_allowed.not_id.or_ids.ids) == 1 + len(revoked)


@pytest.mark.parametrize(
    ("subject", "kind", "text"),
    [
        ("west", "prefix", "spiffe://west.mesh.test/"),
        ("shop/cart.v2@west", "exact", "spiffe://west.mesh.test/ns/shop/sa/cart.v2"),
        ("shop/cart.v2", "safe_regex", r"spiffe://[a-z0-9-]+[.]mesh\.test/ns/shop/sa/cart\.v2"),
    ],
)
def test_whom_a_revocation_matches(subject: str, kind: str, text: str) -> None:
    matcher = revoked_matcher(make_revocation(subject, at=NOW), DOMAIN)
    assert matcher.WhichOneof("match_pattern") == kind
    assert (matcher.safe_regex.regex if kind == "safe_regex" else getattr(matcher, kind)) == text


def test_a_revoked_cluster_is_nowhere_in_the_view() -> None:
    east, _ = east_and_west("10.1.1")
    before, after = seen(east, east.snapshot), seen(east, revoking(east, "west"))
    assert {placed.path for service in before.services for placed in service.endpoints} == set(Path)
    assert {placed.member for service in after.services for placed in service.endpoints} == {"east"}
    assert (len(before.peers), after.peers) == (1, ())
    assert seen(east, apply(revoking(east, "west"), [Change(Section.REVOCATIONS, "west", None)])) == before


@pytest.mark.parametrize("subject", ["isthmus-system/gateway@west", "isthmus-system/gateway"])
def test_no_tunnel_leads_to_gateways_that_are_revoked(subject: str) -> None:
    east, _ = east_and_west("10.1.1")
    view = seen(east, revoking(east, subject))
    assert view.peers == ()
    assert {placed.path for service in view.services for placed in service.endpoints} == {Path.DIRECT}


@pytest.mark.parametrize(
    ("subject", "left"),
    [("shop/server@west", {"east"}), ("shop/server@east", {"west"}), ("shop/server", set()), ("shop/client", None)],
)
def test_revoked_workloads_are_no_endpoints(subject: str, left: set[str] | None) -> None:
    east, _ = east_and_west("10.1.1")
    view = seen(east, revoking(east, subject))
    [cart] = [service for service in view.services if service.host == far("cart")]
    assert {placed.member for placed in cart.endpoints} == ({"east", "west"} if left is None else left)
    assert [peer.name for peer in view.peers] == ["west"]  # others there are still believed


def test_what_is_offered_names_no_revoked_workload_and_keeps_its_name() -> None:
    _, west = east_and_west("10.1.1")
    revoked = Member(west.settings, revoking(west, "shop/server@west"))
    assert revoked.offers.keys() == west.offers.keys()
    assert {endpoint for offer in revoked.offers.values() for endpoint in offer.endpoints} == set()
    elsewhere = Member(west.settings, revoking(west, "shop/server@east"))
    assert elsewhere.offers[key("cart")].endpoints == west.offers[key("cart")].endpoints


def test_every_other_member_may_open_tunnels_but_the_revoked() -> None:
    _, west = east_and_west("10.1.1")
    names = ("east", "north", "west")
    members = {
        ClusterName(name): MemberCluster(ClusterName(name), NetworkName(name), region="eu", gateways=())
        for name in names
    }
    knowing = apply(revoking(west, "north", "shop/client@east"), [Replace(Section.MEMBERS, members)])
    assert tunnel_callers(knowing, west.settings) == ("east",)


@given(revocations, st.sampled_from(CLUSTERS))
def test_an_epoch_begins_where_connections_must_be_cut(revoked: tuple[Revocation, ...], near: str) -> None:
    _, west = east_and_west("10.1.1")
    members = {
        ClusterName(name): MemberCluster(
            ClusterName(name), west.settings.network if name == near else NetworkName(name), region="eu", gateways=()
        )
        for name in CLUSTERS
    }
    picture = msgspec.structs.replace(west.snapshot, members=members, revoked=revoked)
    severs = [one for one in revoked if one.sever or one.subject == near]
    epoch = severing_epoch(picture, west.settings)
    assert bool(epoch) == bool(severs)
    others = msgspec.structs.replace(picture, revoked=tuple(severs))
    assert severing_epoch(others, west.settings) == epoch
