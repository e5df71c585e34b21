"""Names of the times since connections were made to end."""

from datetime import UTC, datetime, timedelta

from federation.model import ClusterSettings, Drain, NetworkName, ServiceKey, Severance
from federation.severing import Epochs, epochs
from federation.snapshot import EMPTY, Change, Section, Snapshot, apply
from trust.spiffe import ClusterName, MeshDomain, Namespace

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EAST = ClusterName("east")
CART, TILL = ServiceKey(Namespace("shop"), "cart"), ServiceKey(Namespace("shop"), "till")
SETTINGS = ClusterSettings(EAST, MeshDomain("mesh.test"), NetworkName("one"), "eu")


def severed(before: Snapshot = EMPTY, **more: object) -> Snapshot:
    one = Severance(EAST, **{"at": NOW, **more})  # type: ignore[arg-type]
    return apply(before, [Change(Section.SEVERANCES, (EAST, one.service), one)])


def chains(snapshot: Snapshot) -> tuple[str, ...]:
    """Returns what stands in the names of chains: tunnels, and those of cart and till, exported or not."""
    now = epochs(snapshot, SETTINGS)
    of_services = (now.of_service(key, is_exported=is_it) for key in (CART, TILL) for is_it in (True, False))
    return now.tunnels, *of_services


def test_nothing_stands_in_names_before_anything_was_severed() -> None:
    assert epochs(EMPTY, SETTINGS) == Epochs()
    assert chains(EMPTY) == ("", "", "", "", "")


def test_only_the_tunnels_of_a_cluster_are_cut_where_gateways_are_on_the_way() -> None:
    tunnels, *others = chains(severed())
    assert tunnels
    assert others == ["", "", "", ""]


def test_the_exported_services_are_cut_at_the_sidecars_where_none_is() -> None:
    tunnels, cart, own_cart, till, own_till = chains(severed(sidecars=True))
    assert tunnels == cart == till != ""
    assert own_cart == own_till == ""


def test_severing_a_service_cuts_no_other() -> None:
    tunnels, cart, _, till, _ = chains(severed(service=CART, sidecars=True))
    assert cart
    assert (tunnels, till) == ("", "")


def test_the_end_of_a_drain_cuts_nothing_and_the_next_one_does() -> None:
    drained = apply(EMPTY, [Change(Section.DRAINS, (EAST, None), Drain(EAST, 0, NOW, sever=True))])
    once = severed(drained, sidecars=True)
    undone = apply(once, [Change(Section.DRAINS, (EAST, None), None)])
    assert epochs(undone, SETTINGS) == epochs(once, SETTINGS)
    again = severed(undone, at=NOW + timedelta(hours=1), sidecars=True)
    assert all(one != other for one, other in zip(chains(again)[:2], chains(once)[:2], strict=True))
    # a service that was severed earlier is cut with all the others, once
    older = severed(again, at=NOW + timedelta(minutes=1), service=CART, sidecars=True)
    assert chains(older) == chains(again)


def test_what_others_severed_is_none_of_ours() -> None:
    west = ClusterName("west")
    of_west = apply(EMPTY, [Change(Section.SEVERANCES, (west, None), Severance(west, NOW))])
    assert epochs(of_west, SETTINGS) == Epochs()
