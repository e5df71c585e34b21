"""The control planes that a drain reaches: what each of them and of its replicas says, and how they are told."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta
from typing import Protocol

import msgspec

from deploy.admin_client import AdminClient
from deploy.cli.survey import Silent, ask_each, ask_one
from federation.admin import DrainOrder
from federation.model import ProxyRole
from federation.reports import ClusterReport, DrainReport, LoadReport, ServiceReport

PATIENCE = timedelta(seconds=3)
"""How long a control plane may take to answer: one that hangs must not hold up the look at all the others."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """What the control plane of one member says. `loads` are those of its replicas, `silent` are replicas that did not
    answer. `unled` counts its ready pods without a sidecar at a replica that did: nobody here sees what they call.
    """

    cluster: str
    name: str  # under which it is reached here
    drains: tuple[DrainReport, ...]
    knows: tuple[ClusterReport, ...]
    loads: tuple[LoadReport, ...]
    silent: tuple[Silent, ...] = ()
    unled: int = 0


class Look(msgspec.Struct, frozen=True):
    """What all said at one moment: the members that answered, by cluster, and those that did not."""

    members: Mapping[str, Member] = {}
    silent: tuple[Silent, ...] = ()

    def known(self) -> frozenset[str]:
        """Returns the members that anybody knows, without those that left, and those that all others have revoked."""
        views = [(own, one) for own, member in self.members.items() for one in member.knows]
        left = {one.name for _, one in views if one.left}
        believed = {one.name for own, one in views if not one.revoked and own != one.name}
        revoked = {one.name for own, one in views if one.revoked and own != one.name} - believed
        return frozenset(one.name for _, one in views) - left - revoked

    def not_reached(self, without: Collection[str]) -> tuple[Silent, ...]:
        """Returns the members that are known and did not answer, and silent replicas that may have proxies: a sidecar
        that loses its replica goes to another."""
        reasons = {one.cluster: one for one in self.silent}
        nobody = "no control plane of it is named here"
        away = [
            reasons.get(name, Silent(name, nobody, is_away=True))
            for name in sorted((self.known() | reasons.keys()) - self.members.keys())
            if name not in without
        ]
        return (*away, *(one for member in self.members.values() if member.unled for one in member.silent))


class Mesh(Protocol):
    """The control planes of a mesh, as many as can be reached; none of these raises because one cannot be."""

    async def look(self) -> Look:
        """Asks all at once, and all their replicas what they count."""

    async def services(self, look: Look) -> Mapping[str, tuple[ServiceReport, ...]]:
        """Returns the services that each member knows; one that does not answer any more is left out."""

    async def drain(self, look: Look, orders: Mapping[str, DrainOrder]) -> tuple[Silent, ...]:
        """Tells members, by cluster, what to drain; returns who refused or did not answer."""

    async def undrain(self, look: Look, asked: Collection[str], *, cluster: str, service: str) -> tuple[Silent, ...]:
        """Has members end a drain that was asked of them; returns who refused or did not answer."""


class DrainMesh:
    """The mesh behind the admin APIs of `names`; `client` makes a client of one by its name."""

    def __init__(self, names: Collection[str], client: Callable[[str], AdminClient]) -> None:
        self._names = tuple(names)
        self._teller = client
        self._client = lambda name: client(name).within(PATIENCE)

    async def look(self) -> Look:
        """Asks all at once, and all their replicas what they count."""
        answers = await ask_each(self._names, self._client, _member)
        members, silent = {}, []
        for name, answer in answers.items():
            match answer:
                case Silent():
                    silent.append(answer)
                case Member(cluster=cluster) if name not in ("", cluster):
                    silent.append(Silent(name, f"says that it is {cluster}: check its address"))
                case Member():
                    members[answer.cluster] = msgspec.structs.replace(answer, name=name)
        return Look(members, tuple(silent))

    async def services(self, look: Look) -> Mapping[str, tuple[ServiceReport, ...]]:
        """Returns the services that each member knows; one that does not answer any more is left out."""
        clusters = {member.name: member.cluster for member in look.members.values()}
        answers = await ask_each(clusters, self._client, lambda client: client.services())
        return {clusters[name]: answer for name, answer in answers.items() if not isinstance(answer, Silent)}

    async def drain(self, look: Look, orders: Mapping[str, DrainOrder]) -> tuple[Silent, ...]:
        """Tells members, by cluster, what to drain; returns who refused or did not answer."""

        async def tell(cluster: str, client: AdminClient) -> None:
            await client.drain(orders[cluster])

        return await self._tell(look, orders, tell)

    async def undrain(self, look: Look, asked: Collection[str], *, cluster: str, service: str) -> tuple[Silent, ...]:
        """Has members end a drain that was asked of them; returns who refused or did not answer."""

        async def tell(_: str, client: AdminClient) -> None:
            await client.undrain(cluster, service)

        return await self._tell(look, asked, tell)

    async def _tell(
        self, look: Look, asked: Collection[str], tell: Callable[[str, AdminClient], Awaitable[None]]
    ) -> tuple[Silent, ...]:
        async with asyncio.TaskGroup() as group:
            # What is told is written to their etcd, which may take longer than a look.
            tasks = [
                group.create_task(ask_one(look.members[one].name, self._teller, functools.partial(tell, one)))
                for one in asked
            ]
        answers = zip(asked, (task.result() for task in tasks), strict=True)
        return tuple(Silent(one, no.reason, is_away=no.is_away) for one, no in answers if no is not None)


async def _member(client: AdminClient) -> Member:
    status = await client.status()
    drains, knows = await client.drains(), await client.clusters()
    if len(status.replicas) > 1:
        answers = await ask_each(status.replicas, client.elsewhere, _replica)
    else:
        answers = {"": await _replica(client)}  # the address at which we reach it need not be the one it knows
    counted = [answer for answer in answers.values() if not isinstance(answer, Silent)]
    return Member(
        cluster=status.cluster,
        name="",
        drains=drains,
        knows=knows,
        loads=tuple(load for load, _ in counted),
        unled=max(0, status.ready_pods - sum(led for _, led in counted)),
        silent=tuple(
            Silent(f"{status.cluster} at {one.cluster}", one.reason)
            for one in answers.values()
            if isinstance(one, Silent)
        ),
    )


async def _replica(client: AdminClient) -> tuple[LoadReport, int]:
    """Returns what one replica counts, and how many sidecars it leads."""
    led = sum(proxy.role == ProxyRole.SIDECAR for proxy in await client.proxies())
    return await client.load(), led
