"""The picture: changes and listings in any order lead to the same place, and nothing is made that did not change."""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.model import (
    EPOCH,
    Freshness,
    Liveness,
    Locality,
    Pod,
    PodKey,
    Protocol,
    Service,
    ServiceKey,
    ServicePort,
)
from federation.snapshot import EMPTY, Change, Replace, Section, Snapshot, apply
from federation.store import MeshStore
from trust.spiffe import ClusterName, Namespace, ServiceAccount

SHOP = Namespace("shop")
LABELS = st.lists(st.sampled_from([("app", "cart"), ("app", "pay"), ("tier", "web")]), unique=True, max_size=2)


def service(name: str, selector: list[tuple[str, str]]) -> Service:
    return Service(ServiceKey(SHOP, name), (ServicePort(80, Protocol.HTTP),), tuple(sorted(selector)))


def pod(name: str, labels: list[tuple[str, str]], ready: bool = True) -> Pod:
    return Pod(
        key=PodKey(SHOP, name),
        address=f"10.0.0.{name}",
        account=ServiceAccount("cart"),
        locality=Locality("eu", "a"),
        ready=ready,
        labels=tuple(sorted(labels)),
    )


services = st.builds(service, st.sampled_from(["cart", "pay"]), LABELS)
pods = st.builds(pod, st.sampled_from(["1", "2", "3"]), LABELS, st.booleans())


@st.composite
def changes(draw: st.DrawFn) -> Change:
    if draw(st.booleans()):
        found = draw(services)
        return Change(Section.SERVICES, found.key, draw(st.sampled_from([found, None])))
    instance = draw(pods)
    return Change(Section.PODS, instance.key, draw(st.sampled_from([instance, None])))


def contents(snapshot: Snapshot) -> tuple[object, ...]:
    return dict(snapshot.services), dict(snapshot.pods), dict(snapshot.endpoints)


@given(st.lists(changes(), max_size=12), st.integers(min_value=1, max_value=4))
def test_any_batching_of_changes_leads_to_the_listing_of_what_is_left(batch: list[Change], size: int) -> None:
    stepwise = EMPTY
    for start in range(0, len(batch), size):
        stepwise = apply(stepwise, batch[start : start + size])
    left: dict[Section, dict[object, object]] = {Section.SERVICES: {}, Section.PODS: {}}
    for change in batch:
        if change.value is None:
            left[change.section].pop(change.key, None)
        else:
            left[change.section][change.key] = change.value
    listed = apply(EMPTY, [Replace(section, values) for section, values in left.items()])
    assert contents(stepwise) == contents(listed)


@given(st.lists(changes(), max_size=12))
def test_endpoints_are_the_ready_pods_that_the_selector_matches(batch: list[Change]) -> None:
    snapshot = apply(EMPTY, batch)
    for key, found in snapshot.services.items():
        expected = {
            instance.key.name
            for instance in snapshot.pods.values()
            if instance.ready and found.selector and set(found.selector) <= set(instance.labels)
        }
        assert {endpoint.pod for endpoint in snapshot.endpoints[key]} == expected
    assert snapshot.endpoints.keys() == snapshot.services.keys()


@given(st.lists(changes(), max_size=8))
def test_a_repeated_change_makes_no_new_picture(batch: list[Change]) -> None:
    snapshot = apply(EMPTY, batch)
    last = {(change.section, change.key): change for change in batch}
    assert apply(snapshot, list(last.values())) is snapshot


def test_what_did_not_change_keeps_its_identity() -> None:
    cart, pay = service("cart", [("app", "cart")]), service("pay", [("app", "pay")])
    before = apply(EMPTY, [Replace(Section.SERVICES, {cart.key: cart, pay.key: pay})])
    listing = {found.key: service(found.key.name, list(found.selector)) for found in (cart, pay)}
    listing[pay.key] = service("pay", [("tier", "web")])
    after = apply(before, [Replace(Section.SERVICES, listing)])
    assert after.services[cart.key] is before.services[cart.key]
    assert after.endpoints[cart.key] is before.endpoints[cart.key]


async def test_everybody_who_waits_is_woken_and_none_too_early() -> None:
    store = MeshStore(frozenset({"source", "etcd"}))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(store.wait_newer(0)) for _ in range(3)]
        ready = tasks.create_task(store.wait_ready())
        await asyncio.sleep(0)
        store.mark_listed("source")
        store.apply([Change(Section.PODS, PodKey(SHOP, "1"), pod("1", []))])
        await asyncio.sleep(0)
        assert not ready.done()
        store.mark_listed("etcd")
    assert {task.result().revision for task in waiting} == {1}
    assert ready.result() is store.snapshot


def test_convergence_counts_from_the_oldest_change_not_yet_seen() -> None:
    store = MeshStore(frozenset())
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for second in range(3):
        instance = pod(str(second), [])
        store.apply([Change(Section.PODS, instance.key, instance)], at=start + timedelta(seconds=second))
    assert store.changed_since(1) == (start + timedelta(seconds=1), False)
    assert store.changed_since(3) is None


def test_a_change_without_effect_is_no_news() -> None:
    store = MeshStore(frozenset())
    assert not store.apply([Change(Section.PODS, PodKey(SHOP, "1"), None)])
    assert store.snapshot is EMPTY
    with pytest.raises(AttributeError):
        store.snapshot.revision = 2  # type: ignore[misc]


def test_that_a_member_was_heard_again_is_kept_and_is_no_new_revision() -> None:
    west = ClusterName("west")
    first = Freshness(Liveness.LIVE, since=EPOCH, heard=EPOCH)
    before = apply(EMPTY, [Change(Section.FRESHNESS, west, first)])

    again = msgspec.structs.replace(first, heard=EPOCH + timedelta(seconds=5))
    after = apply(before, [Change(Section.FRESHNESS, west, again)])
    silent = msgspec.structs.replace(again, state=Liveness.STALE)

    assert after.freshness[west] == again
    assert after.revision == before.revision
    assert apply(after, [Change(Section.FRESHNESS, west, silent)]).revision == after.revision + 1
