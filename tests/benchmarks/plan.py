"""What is simulated: how many members, what each exports, and which endpoint comes or goes next. Pure.

Four of five services are a member's own; the fifth is exported by several members under one name.
"""

import random
from collections.abc import Iterator
from datetime import timedelta

import msgspec

from federation.model import (
    FEDERATION_PORT,
    ClusterSettings,
    GatewayAddress,
    Locality,
    NetworkName,
    Pod,
    PodKey,
    Protocol,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePort,
    Thresholds,
)
from federation.snapshot import Change, Section
from tests.support.trust import DOMAIN
from trust.spiffe import ClusterName, Namespace, ServiceAccount

NAMESPACE = Namespace("shop")
_SHARED_EVERY = 5  # each fifth service is exported by several members
_SHARING = 5  # members that export a shared service


class Plan(msgspec.Struct, frozen=True):
    """The size of a simulation. `quiet_changes` are made one after another, each when the one before has come to all;
    `sender_changes` more by one member that has a process to itself. `rates` are endpoints that come or go each second,
    in all members together: for `churn_seconds`, or until some `churn_changes` were made. `sidecars` are in all.

    `stale_after` is patient by default: fifty control planes on a few cores stand in each other's way as clusters do
    not. Lateness is to be measured, not punished. Members beat every quarter of it.
    After `settle_seconds`, what a change caused is taken to be over.
    """

    members: int = 50
    services: int = 20
    endpoints: int = 5
    quiet_changes: int = 60
    sender_changes: int = 20
    quiet_pause: float = 0.3
    sidecars: int = 4
    rates: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0)
    churn_seconds: float = 15.0
    churn_changes: int = 20
    idle_seconds: float = 15.0
    join_seconds: float = 15.0
    settle_seconds: float = 5.0
    stale_after: float = 60.0
    seed: int = 1


class Spec(msgspec.Struct, frozen=True):
    """One member as its worker is told of it. Keys and certificates are PEM."""

    index: int
    address: str
    etcd: str
    key: str
    certificate: str
    root: str
    documents: tuple[str, ...]


def name_of(index: int) -> ClusterName:
    """Returns the name of the member with a number, from 1."""
    return ClusterName(f"m{index}")


def settings_of(plan: Plan, index: int, address: str) -> ClusterSettings:
    """Returns what a member's control plane is told. Its gateway is its own federation port: no proxy is between."""
    return ClusterSettings(
        name=name_of(index),
        domain=DOMAIN,
        network=NetworkName(f"n{index}"),
        region=f"region-{index % 4}",
        zones=("a", "b"),
        gateways=(GatewayAddress(address, FEDERATION_PORT),),
        thresholds=Thresholds(stale_after=timedelta(seconds=plan.stale_after)),
    )


def services_of(plan: Plan, index: int) -> tuple[ServiceKey, ...]:
    """Returns the services that a member exports."""
    shared = (index - 1) // _SHARING
    return tuple(
        ServiceKey(NAMESPACE, f"shared-{shared}-{number}" if number % _SHARED_EVERY == 0 else f"own-{index}-{number}")
        for number in range(plan.services)
    )


def objects_of(plan: Plan, index: int) -> list[Change]:
    """Returns all objects of a member, as its source lists them."""
    changes = []
    for key in services_of(plan, index):
        service = Service(key, (ServicePort(80, Protocol.HTTP, target=8080),), (("app", key.name),))
        changes += [Change(Section.SERVICES, key, service), Change(Section.EXPORTS, key, ServiceExport(key))]
        changes += [pod_change(plan, index, key, number=number, ready=True) for number in range(plan.endpoints)]
    return changes


def pod_change(plan: Plan, index: int, service: ServiceKey, *, number: int, ready: bool) -> Change:
    """Says that a pod of a member's service is there, ready or not."""
    place = services_of(plan, index).index(service) * plan.endpoints + number
    pod = Pod(
        key=PodKey(NAMESPACE, f"{service.name}-{number}"),
        address=f"10.{index}.{place // 250}.{place % 250 + 1}",
        account=ServiceAccount(service.name),
        locality=Locality(f"region-{index % 4}", "ab"[number % 2]),
        ready=ready,
        labels=(("app", service.name), ("version", "v1")),
        ports=(("http", 8080),),
    )
    return Change(Section.PODS, pod.key, pod)


def churn(plan: Plan, index: int) -> Iterator[Change]:
    """Says for ever which endpoint of a member goes, or comes back, next. Each service keeps its first endpoint."""
    drawn = random.Random(plan.seed * 1000 + index)
    services = services_of(plan, index)
    away: set[tuple[ServiceKey, int]] = set()
    while True:
        which = (drawn.choice(services), drawn.randrange(1, plan.endpoints))
        away ^= {which}
        yield pod_change(plan, index, which[0], number=which[1], ready=which not in away)
