"""What an admin may drain, and what is kept of it: the backend over a real etcd."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.control.drain_backend import DrainBackend
from federation import names
from federation.admin import AdminRefused, DrainOrder
from federation.etcd import EtcdClient
from federation.model import (
    EPOCH,
    ClusterSettings,
    Departure,
    Drain,
    Endpoint,
    ExportedService,
    GatewayAddress,
    Locality,
    MemberCluster,
    NetworkName,
    Pod,
    PodKey,
    Protocol,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePort,
)
from federation.peering.exports import decode_drain, decode_severance
from federation.snapshot import Replace, Section
from federation.store import MeshStore
from tests.support.etcd import start_etcd
from trust.audit import AuditEvent, AuditKind
from trust.spiffe import ClusterName, MeshDomain, Namespace, ServiceAccount

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EAST, WEST, NORTH = ClusterName("east"), ClusterName("west"), ClusterName("north")
SHOP = Namespace("shop")
CART, TILL, STORE = (ServiceKey(SHOP, name) for name in ("cart", "till", "store"))
HTTP = (ServicePort(80, Protocol.HTTP),)
SETTINGS = ClusterSettings(EAST, MeshDomain("mesh.test"), NetworkName("east"), "eu")


def member(name: ClusterName, *, network: str = "", drains: tuple[Drain, ...] = ()) -> MemberCluster:
    gateways = (GatewayAddress("192.0.2.1"),)
    return MemberCluster(name, NetworkName(network or name), "us", gateways, drains=drains)


def exported(cluster: ClusterName, key: ServiceKey) -> ExportedService:
    endpoint = Endpoint("10.9.0.1", f"{key.name}-1", ServiceAccount(key.name), Locality())
    return ExportedService(cluster, key, HTTP, (endpoint,), EPOCH)


def picture() -> MeshStore:
    """East exports cart and till and keeps store to itself; west has a cart, too, and north has left."""
    store = MeshStore(frozenset())
    pods = [
        Pod(PodKey(SHOP, f"{key.name}-1"), f"10.1.0.{n}", ServiceAccount("a"), Locality(), labels=(("app", key.name),))
        for n, key in enumerate((CART, TILL, STORE), 1)
    ]
    store.apply(
        [
            Replace(Section.SERVICES, {key: Service(key, HTTP, (("app", key.name),)) for key in (CART, TILL, STORE)}),
            Replace(Section.EXPORTS, {key: ServiceExport(key) for key in (CART, TILL)}),
            Replace(Section.PODS, {one.key: one for one in pods}),
            Replace(Section.MEMBERS, {one: member(one) for one in (WEST, NORTH)}),
            Replace(Section.IMPORTS, {(WEST, CART): exported(WEST, CART)}),
            Replace(Section.DEPARTURES, {NORTH: Departure(NORTH, NOW)}),
        ]
    )
    return store


class Asked:
    """A backend and what it wrote."""

    def __init__(self, etcd: EtcdClient) -> None:
        self.etcd = etcd
        self.store = picture()
        self.events: list[AuditEvent] = []
        self.backend = DrainBackend(SETTINGS, store=self.store, etcd=etcd, on_event=self.events.append)

    async def drain(self, cluster: str, weight: int = 0, service: str = "", *, sever: bool = False) -> None:
        await self.backend.drain(DrainOrder(cluster, weight, service, sever=sever), asked_by="admin")

    async def held(self, cluster: ClusterName, service: ServiceKey | None = None) -> Drain | None:
        found = await self.etcd.get(names.drain_key(cluster, service))
        return decode_drain(found.value) if found else None

    async def severed(self, service: ServiceKey | None = None) -> tuple[datetime, bool] | None:
        found = await self.etcd.get(names.severance_key(EAST, service))
        severance = decode_severance(found.value) if found else None
        return (severance.at, severance.sidecars) if severance else None


@asynccontextmanager
async def asked_of_east(folder: Path) -> AsyncIterator[Asked]:
    async with start_etcd(folder) as etcd, EtcdClient([etcd.url]) as client:
        yield Asked(client)


async def test_a_drain_is_kept_until_it_is_undone(tmp_path: Path) -> None:
    async with asked_of_east(tmp_path) as east:
        (report,) = await east.backend.drain(DrainOrder("east", 50), asked_by="admin")
        assert (report.cluster, report.weight, report.asked_of) == ("east", 50, "east")
        first = await east.held(EAST)
        assert first is not None
        await east.drain("east", 10)
        assert await east.held(EAST) == Drain(EAST, 10, first.since)
        await east.drain("east", 10)  # twice is once
        await east.drain("west", 0, "shop/cart")
        assert await east.held(WEST, CART) is not None
        await east.backend.undrain("east", "", asked_by="admin")
        assert await east.held(EAST) is None
        assert [(event.kind, event.subject) for event in east.events] == [
            (AuditKind.DRAINED, "cluster east"),
            (AuditKind.DRAINED, "cluster east"),
            (AuditKind.DRAINED, "shop/cart of cluster west"),
            (AuditKind.UNDRAINED, "cluster east"),
        ]
        assert east.events[1].reason == "it gets 10 percent of its calls"

        refused = [
            (DrainOrder("wset", 0), 404, "knows no member 'wset'", "did you mean west"),
            (DrainOrder("north", 0), 404, "knows no member 'north'", "did you mean"),
            (DrainOrder("west", 100), 400, "0 to 99 percent", "undrain"),
            (DrainOrder("west", -1), 400, "0 to 99 percent", "undrain"),
            (DrainOrder("west", 0, "cart"), 400, "'cart' is no service", "NAMESPACE/NAME"),
            (DrainOrder("west", 0, "shop/crat"), 404, "no service shop/crat of west", "did you mean shop/cart"),
            (DrainOrder("east", 0, "shop/store"), 409, "shop/store is not exported", "shop/cart"),
        ]
        for order, status, message, hint in refused:
            with pytest.raises(AdminRefused, match=message) as found:
                await east.backend.drain(order, asked_by="admin")
            assert found.value.status == status
            assert hint in found.value.hint
        for cluster, service in (("east", ""), ("west", ""), ("west", "shop/till")):
            with pytest.raises(AdminRefused, match="was not asked to drain"):
                await east.backend.undrain(cluster, service, asked_by="admin")

        # what is open is made to end once for each drain, at 0: at the gateways alone
        await east.drain("east", 10, sever=True)
        assert await east.severed() is None
        await east.drain("east", 0, sever=True)
        cut = await east.severed()
        assert cut is not None
        assert cut[1] is False
        await east.drain("east", 0, sever=True)
        await east.backend.undrain("east", "", asked_by="admin")
        assert await east.severed() == cut
        await east.drain("east", 0, sever=True)
        again = await east.severed()
        assert again is not None
        assert again > cut
        # no gateway can tell services apart, and another's connections are not ours to cut
        await east.drain("east", 0, "shop/cart", sever=True)
        assert (await east.severed(CART) or (NOW, False))[1]
        await east.drain("west", 0, sever=True)
        assert await east.etcd.get(names.severance_key(WEST, None)) is None
        # where no gateway is on the way, sidecars cut
        east.store.apply([Replace(Section.MEMBERS, {WEST: member(WEST, network="east")})])
        await east.backend.undrain("east", "", asked_by="admin")
        await east.drain("east", 0, sever=True)
        assert (await east.severed() or (NOW, False))[1]


async def test_what_others_say_of_themselves_and_what_stays_is_shown(tmp_path: Path) -> None:
    async with asked_of_east(tmp_path) as east:
        of_west = Drain(WEST, 0, NOW)
        east.store.apply(
            [
                Replace(Section.MEMBERS, {WEST: member(WEST, drains=(of_west,))}),
                Replace(Section.DRAINS, {(EAST, TILL): Drain(EAST, 0, NOW, service=TILL)}),
            ]
        )
        mine, told = east.backend.drains()
        assert (mine.cluster, mine.service, mine.asked_of, mine.kept) == ("east", "shop/till", "east", ("shop/till",))
        assert (told.cluster, told.service, told.asked_of, told.kept) == ("west", "", "west", ())
        with pytest.raises(AdminRefused, match="west itself drains west") as refused:
            await east.backend.undrain("west", "", asked_by="admin")
        assert "at west" in refused.value.hint


async def test_an_etcd_that_is_away_is_named() -> None:
    async with EtcdClient(["http://127.104.255.1:2379"]) as etcd:
        with pytest.raises(AdminRefused, match="etcd did not say what is drained") as refused:
            await Asked(etcd).drain("west")
    assert refused.value.status == 503
