"""A mesh that is broken on purpose, under load: what is done to it, what it says meanwhile, what it is afterwards."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec

from deploy.admin_client import AdminClient, ControlRefused, ControlUnreachable
from deploy.lab.client import LabClient
from deploy.lab.links import LinkState
from deploy.lab.load import Load
from deploy.lab.reports import Action, LabReport
from deploy.lab.state import Folder, write_atomically
from deploy.lab.targets import Kind, parse_process
from federation.model import Liveness
from federation.reports import ClusterReport, StatusReport
from federation.xds.bootstrap import token_file
from tests.faults.pictures import Picture, differences, timeless, told
from tests.faults.row import NotYet, Row, since
from tests.faults.standstill import check_counted
from tests.faults.table import Outcome
from trust.spiffe import GATEWAY_ACCOUNT, SYSTEM_NAMESPACE

CLUSTERS = ("east", "west", "south")
CART = "http://cart.shop.svc.clusterset.local/"
CLIENT = "east/shop/client-1/sidecar"
STOCK = "http://stock.shop.svc.clusterset.local/"
RATE = 50.0  # requests a second of each load, GET and POST in turn
_STARVED = 0.02
"""What part of the requests may be POSTs that fail because the machine stood still (`Row.starved`)."""
_ADMIN = timedelta(seconds=2)  # how long a control plane may take to say something


class BrokenMesh:
    """One lab of three clusters for all tests here. `record` is told of each row. An async context manager."""

    def __init__(self, folder: Folder, report: LabReport, manifests: Path, record: Callable[[Outcome], None]) -> None:
        self.manifests = manifests
        self._record = record
        self._report = report
        self._folder = folder
        self._lab = LabClient(folder)
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3))
        self._tokens = {each.name: Path(each.admin_token_file).read_text().strip() for each in report.clusters}
        self._addresses = {each.target: each.address for each in report.processes}

    async def __aenter__(self) -> Self:
        await self._lab.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()
        await self._lab.__aexit__(None, None, None)

    # what is done

    async def act(self, action: Action, *targets: str) -> None:
        """Does something to processes, as `isthmus lab` does."""
        for target in targets:
            await self._lab.act(action, target)

    async def link(self, one: str, other: str, state: LinkState) -> None:
        """Cuts or heals a link."""
        await self._lab.set_link(one, other, state)

    async def etcd(self, node: str, path: str, body: dict[str, object]) -> Any:
        """Asks an etcd something over its JSON gateway."""
        try:
            async with self._http.post(f"http://{self._addresses[node]}:2379/v3/{path}", json=body) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NotYet(f"{node} does not answer: {error}") from error
        if response.status != 200:
            raise NotYet(f"{node}: {answer}")
        return answer

    async def mend(self) -> None:
        """Undoes whatever a row that failed has left."""
        for one, other in (("east", "west"), ("east", "south"), ("west", "south")):
            await self.link(one, other, LinkState.OPEN)
        for cluster in CLUSTERS:
            await self.link(f"{cluster}/control", f"{cluster}/etcd", LinkState.OPEN)
            await self.act(Action.RESUME, cluster)
            await self.act(Action.START, cluster)

    async def issue_tokens(self, cluster: str) -> None:
        """Gives the proxies of a cluster new join tokens, as somebody must who lost etcd and all control planes."""
        async with self.admin(self.replicas(cluster)[0]) as admin:
            for each in self._report.processes:
                process = parse_process(each.target)
                if process is None or process.cluster != cluster or process.kind not in (Kind.GATEWAY, Kind.SIDECAR):
                    continue
                if process.kind is Kind.GATEWAY:
                    token = await admin.create_token(str(SYSTEM_NAMESPACE), str(GATEWAY_ACCOUNT), "gateway")
                else:  # the accounts of the lab file are called as the workloads
                    token = await admin.create_token(process.namespace, process.workload, "sidecar")
                write_atomically(self._folder.proxy(process) / "token.json", token_file(token.token))

    # what is seen

    def replicas(self, cluster: str) -> list[str]:
        """Returns the control plane replicas of a cluster."""
        return [each.target for each in self._report.processes if (each.cluster, each.kind) == (cluster, Kind.CONTROL)]

    def sidecars(self, cluster: str) -> list[str]:
        """Returns the sidecars of a cluster."""
        return [each.target for each in self._report.processes if (each.cluster, each.kind) == (cluster, Kind.SIDECAR)]

    async def streams(self, replica: str) -> dict[str, datetime]:
        """Returns which proxies a replica has, and since when each is on its stream."""
        async with self.admin(replica) as admin:
            return {proxy.node: proxy.connected_since for proxy in await admin.proxies()}

    @asynccontextmanager
    async def admin(self, replica: str) -> AsyncIterator[AdminClient]:
        """Gives the admin API of one replica; it not answering means that what is waited for does not hold."""
        token = self._tokens[replica.partition("/")[0]]
        url = f"http://{self._addresses[replica]}:15014"
        async with AdminClient(url, token, timeout=_ADMIN) as admin:
            try:
                yield admin
            except (ControlUnreachable, ControlRefused) as error:
                raise NotYet(f"{replica}: {error.message}") from error

    async def status(self, replica: str) -> StatusReport:
        """Returns what `isthmus status` shows of one replica."""
        async with self.admin(replica) as admin:
            return await admin.status()

    async def leader(self, cluster: str) -> str:
        """Returns the one replica of a cluster that leads and answers."""
        found = [replica for replica in self.replicas(cluster) if await self._leads(replica)]
        if len(found) != 1:
            raise NotYet(f"{cluster} is led by {found}")
        return found[0]

    async def _leads(self, replica: str) -> bool:
        try:
            return (await self.status(replica)).is_leader
        except NotYet:
            return False

    async def member(self, replica: str, name: str) -> ClusterReport:
        """Returns a member as one replica sees it."""
        async with self.admin(replica) as admin:
            return next(each for each in await admin.clusters() if each.name == name)

    async def sees(self, cluster: str, name: str, state: str) -> None:
        """Raises NotYet unless all replicas of a cluster that answer, one at least, see a member in that state."""
        for replica in self.replicas(cluster):
            member = await self.member(replica, name)
            if member.state != state:
                raise NotYet(f"{replica} sees {name} as {member.state}")

    async def is_led(self, cluster: str) -> None:
        """Raises NotYet unless one replica leads, and all that answer know it."""
        leader = await self.leader(cluster)
        for replica in self.replicas(cluster):
            if (await self.status(replica)).leader != leader.rpartition("/")[2]:
                raise NotYet(f"{replica} does not know that {leader} leads")

    async def lacks_proxy(self, cluster: str, count: int) -> None:
        """Raises NotYet unless so many proxies of a cluster are connected to none of its replicas."""
        statuses = [await self.status(replica) for replica in self.replicas(cluster)]
        missing = self._count_proxies(cluster) - sum(status.proxies for status in statuses)
        if missing != count:
            raise NotYet(f"{cluster} lacks {missing} proxies")

    def _count_proxies(self, cluster: str) -> int:
        return sum(
            each.cluster == cluster and each.kind in (Kind.GATEWAY, Kind.SIDECAR) for each in self._report.processes
        )

    async def dump(self, proxy: str) -> Any:
        """Returns all that an Envoy was told, but for secrets."""
        try:
            async with self._http.get(f"http://{self._addresses[proxy]}:15000/config_dump?include_eds") as response:
                return msgspec.json.decode(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotYet(f"{proxy} does not answer: {error}") from error

    async def has_endpoints(self, proxy: str, service: str, expected: dict[str, int]) -> None:
        """Raises NotYet unless an Envoy has so many endpoints of a mesh-wide service in each member."""
        found: dict[str, int] = {}
        for name, assignment in told(await self.dump(proxy)):
            if name.startswith("endpoints ") and f"{service}.shop.svc.clusterset.local" in name:
                for group in assignment.get("endpoints", ()):
                    member = group.get("locality", {}).get("sub_zone", "")
                    found[member] = found.get(member, 0) + len(group.get("lb_endpoints", ()))
        if found != expected:
            raise NotYet(f"{proxy} has for {service} {found}")

    async def finds_sick(self, proxy: str) -> None:
        """Raises NotYet unless an Envoy's own health checks fail for some host."""
        try:
            async with self._http.get(f"http://{self._addresses[proxy]}:15000/clusters?format=json") as response:
                clusters = msgspec.json.decode(await response.read())["cluster_statuses"]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotYet(f"{proxy} does not answer: {error}") from error
        hosts = [host for cluster in clusters for host in cluster.get("host_statuses", ())]
        if not any(host["health_status"].get("failed_active_health_check") for host in hosts):
            raise NotYet(f"{proxy} finds all hosts healthy")

    async def records(self, node: str) -> frozenset[str]:
        """Returns the keys that an etcd holds, but for those of elections, whose names are leases."""
        first, last = (base64.b64encode(each).decode() for each in (b"/", b"0"))
        answer = await self.etcd(node, "kv/range", {"key": first, "range_end": last, "keys_only": True})
        keys = (base64.b64decode(each["key"]).decode() for each in answer.get("kvs", ()))
        return frozenset(key for key in keys if "/election/" not in key and "/leader" not in key)

    async def check_whole(self) -> None:
        """Raises NotYet unless all clusters are led, hear each other, have no problem and all proxies in step."""
        for cluster in CLUSTERS:
            statuses, views = [], []
            for replica in self.replicas(cluster):
                async with self.admin(replica) as admin:
                    statuses.append(await admin.status())
                    views.append((replica, await admin.clusters()))
            leading = [status.replica for status in statuses if status.is_leader]
            if len(leading) != 1:
                raise NotYet(f"{cluster} is led by {leading}")
            expected = self._count_proxies(cluster)
            for status in statuses:
                wrong = [f"{each.subject}: {each.message}" for each in status.problems]
                if not status.is_ready or wrong or status.pods != status.ready_pods:
                    raise NotYet(f"{cluster} {status.replica}: {status.waiting_for} {wrong}")
            in_step = sum(status.proxies_in_step for status in statuses)
            if not in_step == sum(status.proxies for status in statuses) == expected:
                raise NotYet(f"{cluster}: {in_step} of {expected} proxies in step")
            for replica, members in views:
                if unknown := set(CLUSTERS) - {member.name for member in members}:
                    raise NotYet(f"{replica} does not know {sorted(unknown)}")
                for member in members:
                    if not member.is_self and (member.state is not Liveness.LIVE or member.problem):
                        raise NotYet(f"{replica} on {member.name}: {member.state} {member.problem}")

    async def picture(self) -> Picture:
        """Returns what all replicas believe and what all proxies were told."""
        found: dict[str, Any] = {}
        for cluster in CLUSTERS:
            for replica in self.replicas(cluster):
                async with self.admin(replica) as admin:
                    for service in await admin.services():
                        said = timeless(msgspec.to_builtins(service))
                        found[f"{replica} service {service.namespace}/{service.name}"] = said
                    for member in await admin.clusters():
                        found[f"{replica} member {member.name}"] = timeless(msgspec.to_builtins(member))
        for proxy in (each.target for each in self._report.processes if each.kind in (Kind.GATEWAY, Kind.SIDECAR)):
            found |= {f"{proxy} {name}": value for name, value in told(await self.dump(proxy))}
        return found

    async def check_picture(self, before: Picture) -> None:
        """Raises NotYet unless the mesh is whole and its picture is the one before."""
        await self.check_whole()
        wrong = differences(before, await self.picture())
        if wrong:
            raise NotYet("\n".join(wrong))

    # one row of the table

    @asynccontextmanager
    async def row(
        self,
        fault: str,
        before: Picture,
        *,
        loads: Sequence[tuple[str, str]] = (("east", CART), ("east", STOCK)),
        posts_may_fail: bool = False,
    ) -> AsyncIterator["Row"]:
        """Breaks something under load: calls from the clients of some clusters, which must not fail.

        When the body has repaired what it broke, the mesh has to become what it was `before`. With `posts_may_fail`
        those POSTs may fail that were under way in what was killed or cut. Raises StoodStill when nothing failed that
        counts, but too little counts.
        """
        row = Row()
        calls = [
            Load(url, proxy=f"http://{self._addresses[f'{cluster}/shop/client-1/sidecar']}:15001", rate=RATE,
                 methods=("GET", "POST"))
            for cluster, url in loads
        ]  # fmt: skip
        held = False
        try:
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(call.run())
                try:
                    await since(0.0, lambda: _flow(calls))  # before anything breaks
                    yield row
                    await row.recovers(lambda: self.check_picture(before))
                finally:
                    for call in calls:
                        call.stop()
            every = [attempt for call in calls for attempt in call.attempts]
            attempts = row.counted(every)
            lost = row.failures(attempts, posts_may_fail=posts_may_fail)
            starved = row.starved(lost, every)
            wrong = [each for each in lost if each not in starved]
            assert not wrong, f"{len(wrong)} requests failed, such as {wrong[:3]}; fault at {row.struck:.2f}"
            assert len(starved) <= _STARVED * len(attempts), f"{len(starved)} POSTs failed: no machine is so slow"
            check_counted(every)
            held = True
        finally:
            self._record(row.outcome(fault, [each for call in calls for each in call.attempts], held=held))
            if not held:
                await self.mend()


async def _flow(calls: Sequence[Load]) -> None:
    """Raises NotYet until half a second's requests of each load have ended."""
    if not all(len(call.attempts) >= RATE / 2 for call in calls):
        raise NotYet("the load has only begun")
