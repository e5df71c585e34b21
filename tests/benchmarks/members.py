"""One simulated member: what of a control plane federation costs, its real etcd, and one sidecar where asked for."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from federation.etcd import EtcdClient
from federation.model import FEDERATION_PORT, Liveness
from federation.peering import exports
from federation.peering.freshness import answer_limit
from federation.peering.news import News
from federation.snapshot import Snapshot, differing
from tests.benchmarks.plan import Plan, Spec, churn, name_of, objects_of, settings_of
from tests.benchmarks.sidecar import SimulatedSidecar
from tests.support.federation import ControlUnderTest, serve
from tests.support.trust import bundle_of
from trust.bundle import TrustBundle
from trust.enrolment import Intermediate
from trust.issuance import Issuer

_PATIENCE = timedelta(seconds=30)
"""With etcd, and of the leader's lease: members that share a few cores keep each other waiting, as clusters do not."""


class SimulatedMember:
    """A control plane on an etcd of its own. `took` are (change, seconds until it was in this picture)."""

    def __init__(self, plan: Plan, spec: Spec, control: ControlUnderTest) -> None:
        self.control = control
        self.sidecar: SimulatedSidecar | None = None
        self.took: list[tuple[float, float]] = []
        self._news = News()
        self._wants_sidecar = asyncio.Event()
        self._churn = churn(plan, spec.index)

    async def watch(self) -> None:
        """Notes how old remote changes are when they reach the picture, for ever."""
        store = self.control.store
        snapshot = await store.wait_ready()
        while True:
            before, snapshot = snapshot, await store.wait_newer(snapshot.revision)
            now = time.time()
            for key in differing(before.imports, snapshot.imports):
                if key in snapshot.imports:
                    moment = snapshot.imports[key].changed_at.timestamp()
                    self.took.append((moment, now - moment))
            self._news.tell()

    async def run_sidecar(self, folder: Path) -> None:
        """Runs a sidecar, for ever, once it is asked for."""
        await self._wants_sidecar.wait()
        self.sidecar = SimulatedSidecar(self.control.settings, self.control.store, folder)
        await self.sidecar.run()

    def add_sidecar(self) -> None:
        """Asks for a sidecar."""
        self._wants_sidecar.set()

    def change(self) -> float:
        """Lets one endpoint go, or come back, and returns the moment, in seconds since the epoch."""
        at = datetime.now(UTC)
        self.control.store.apply([next(self._churn)], at=at)
        return at.timestamp()

    async def await_taken(self, change: float) -> None:
        """Returns once a remote change has been in the picture."""
        while all(moment != change for moment, _ in self.took):
            await self._news.wait_newer(self._news.count)

    async def await_whole(self, members: int, imports: int) -> float:
        """Returns when (seconds since the epoch) the picture held, and heard, so many others, and all they export."""
        store = self.control.store
        snapshot = store.snapshot
        while not self._is_whole(snapshot, members, imports):
            snapshot = await store.wait_newer(snapshot.revision)
        return time.time()

    def _is_whole(self, snapshot: Snapshot, members: int, imports: int) -> bool:
        live = sum(one.state is Liveness.LIVE for one in snapshot.freshness.values())
        # Of its own services a member imports none; the picture may count its own record or not.
        own = len(snapshot.exports)
        return (
            len(snapshot.members.keys() | {self.control.name}) == members
            and len(snapshot.imports) == imports - own
            and live == members - 1
        )

    def digests(self) -> dict[str, str]:
        """Returns digests of what this member offers, and of what it holds of each other one, by their names."""
        held: dict[str, list[str]] = {}
        for (cluster, key), exported in sorted(self.control.picture.imports.items()):
            held.setdefault(cluster, []).append(f"{key} {exports.export_version(exported)}")
        own = self.control.offer.exports
        held[self.control.name] = [f"{key} {exports.export_version(own[key])}" for key in sorted(own)]
        return {name: hashlib.blake2b("\n".join(lines).encode()).hexdigest()[:16] for name, lines in held.items()}


@asynccontextmanager
async def run_member(plan: Plan, spec: Spec, folder: Path) -> AsyncIterator[SimulatedMember]:
    """Runs a member; gives it when its leader leads and its port is open."""
    settings = settings_of(plan, spec.index, spec.address)
    issuer = _issuer(plan, spec)
    documents = tuple(msgspec.json.decode(each, type=TrustBundle) for each in spec.documents)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(EtcdClient((spec.etcd,), timeout=_PATIENCE))
        control = ControlUnderTest(issuer, client, settings, documents=documents, lease=_PATIENCE)
        control.store.apply(objects_of(plan, spec.index))
        control.store.mark_listed("source")
        await stack.enter_async_context(
            serve(
                (spec.address, FEDERATION_PORT),
                control.offer.handler,
                control.keeper.svid(),
                issuer=issuer,
                patience=answer_limit(settings.thresholds),
            )
        )
        member = SimulatedMember(plan, spec, control)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = [tasks.create_task(part) for part in (control.run(), member.watch(), member.run_sidecar(folder))]
        await control.offer.wait_ready()
        try:
            yield member
        finally:
            for task in running:
                task.cancel()


def _issuer(plan: Plan, spec: Spec) -> Issuer:
    key = load_pem_private_key(spec.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    root = load_pem_x509_certificate(spec.root.encode())
    certificate = load_pem_x509_certificate(spec.certificate.encode())
    settings = settings_of(plan, spec.index, spec.address)
    authority = Intermediate(
        cluster=name_of(spec.index), domain=settings.domain, certificate=certificate, root=root, key=key
    )
    return Issuer(authority, bundle_of(root), leaf_lifetime=timedelta(hours=12))
