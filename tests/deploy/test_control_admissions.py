"""Who may be told something: by which token, for how long, as which node; against a real etcd."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from deploy.control.admissions import Admissions
from deploy.control.tokens import Tokens
from federation.admin import AdminRefused, TokenOrder
from federation.etcd import EtcdClient
from federation.model import ClusterSettings, Locality, NetworkName, Pod, PodKey, ProxyRole
from federation.names import TOKENS_PREFIX, token_key
from federation.reports import TokenReport
from federation.snapshot import EMPTY, Change, Section, Snapshot, apply
from federation.xds.ads import Admitted, ProxyNode
from federation.xds.server import Refused, Unauthenticated, Unavailable
from tests.support.control import until
from tests.support.etcd import Etcd, start_etcd
from tests.support.waiting import eventually
from trust import join_tokens
from trust.attestation import AttestationRefused, Door, PodBinding, Proof, TokenRole
from trust.audit import AuditEvent
from trust.join_tokens import TokenState
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount, gateway_identity

EAST = ClusterName("east")
SHOP = Namespace("shop")
SETTINGS = ClusterSettings(EAST, MeshDomain("mesh.test"), NetworkName("east"), "eu", cloud="one")
CART = ServiceAccount("cart")
ADMIN = "admin at 127.0.0.1"


def a_picture(account: ServiceAccount = CART) -> Snapshot:
    pod = Pod(PodKey(SHOP, "cart-1"), "10.0.0.1", account, Locality(zone="a"), labels=(("app", "cart"),))
    return apply(EMPTY, [Change(Section.PODS, pod.key, pod)])


def node(name: str, **metadata: str) -> ProxyNode:
    return ProxyNode(id=name, metadata=metadata, peer="10.0.0.1")


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    async with start_etcd(tmp_path) as server:
        yield server


class Replica:
    """What one replica knows of tokens and whom it admits, and its audit trail."""

    def __init__(self, client: EtcdClient) -> None:
        self.events: list[AuditEvent] = []
        self.client = client
        self.tokens = Tokens(client, self.events.append)
        self.admissions = Admissions(SETTINGS, Door([self.tokens]), self.events.append)

    async def token(self, account: str = "cart", **order: object) -> TokenReport:
        namespace, role = ("isthmus-system", TokenRole.GATEWAY) if account == "gateway" else ("shop", TokenRole.SIDECAR)
        body = {"namespace": namespace, "account": account, "role": role, **order}
        return await self.tokens.create(msgspec.convert(body, TokenOrder), asked_by=ADMIN)

    async def admit(self, name: str, token: TokenReport) -> Admitted:
        return await self.admissions.admit(node(name), token.token)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@asynccontextmanager
async def a_replica(etcd: Etcd) -> AsyncIterator[Replica]:
    async with EtcdClient((etcd.url,)) as client, asyncio.TaskGroup() as group:
        replica = Replica(client)
        following = group.create_task(replica.tokens.run())
        yield replica
        following.cancel()


async def reason(ended: Awaitable[None]) -> str:
    """Returns why a stream was ended."""
    with pytest.raises(Unauthenticated) as refusal:
        async with asyncio.timeout(60):
            await ended
    return str(refusal.value)


async def test_a_token_admits_the_proxies_of_its_account_and_no_others(etcd: Etcd) -> None:
    async with a_replica(etcd) as east:
        token = await east.token()
        admitted = await east.admit("east/shop/cart-1", token)
        assert (admitted.identity, admitted.proof) == (Identity(EAST, SHOP, CART), f"join-token {token.id}")
        with pytest.raises(Unauthenticated):
            await east.admissions.admit(node("east/shop/cart-1"), join_tokens.new_token())
        for stranger in ("west/shop/cart-1", "east/bank/cart-1", "east/gateway-1", "nobody"):
            with pytest.raises(Refused):
                await east.admit(stranger, token)
        with pytest.raises(Refused, match="runs as other"):
            east.admissions.scope(a_picture(ServiceAccount("other")), node("east/shop/cart-1"), admitted.identity)
        assert east.admissions.scope(a_picture(), node("east/shop/cart-2"), admitted.identity) is None
        scope = east.admissions.scope(a_picture(), node("east/shop/cart-1"), admitted.identity)
        assert scope is not None
        assert scope.audience.role is ProxyRole.SIDECAR
        assert east.kinds == ["token-created", *["refused"] * 6]
        assert east.events[-2].asked_by == "nobody (10.0.0.1)"
        assert east.events[-2].proof == f"join-token {token.id}"


async def test_nobody_calls_himself_what_others_could_not_read(etcd: Etcd) -> None:
    async with a_replica(etcd) as east:
        gateway, sidecar = await east.token("gateway"), await east.token("cart", once=True)
        for name in ("gw\x1b[2J", "gw\n", "Gateway", "g" * 64):
            for called, token in ((f"east/{name}", gateway), (f"east/shop/{name}", sidecar)):
                with pytest.raises(Refused, match="is no node id"):
                    await east.admit(called, token)
        await east.admit("east/shop/cart-1", sidecar)  # its one use was not spent


async def test_a_gateway_says_where_it_listens(etcd: Etcd) -> None:
    async with a_replica(etcd) as east:
        token = await east.token("gateway")
        identity = (await east.admit("east/gateway-1", token)).identity
        assert identity == gateway_identity(EAST)
        scope = east.admissions.scope(EMPTY, node("east/gateway-1", address="10.0.0.9"), identity)
        assert scope is not None
        assert (scope.address, scope.audience.role, scope.pod) == ("10.0.0.9", ProxyRole.GATEWAY, None)
        for address in ("", "gateway.test", "0.0.0.0:1", "x" * 10_000_000):
            with pytest.raises(Refused) as refusal:
                east.admissions.scope(EMPTY, node("east/gateway-1", address=address), identity)
            assert len(str(refusal.value)) < 1000
        with pytest.raises(Refused):
            await east.admit("east/shop/cart-1", token)


async def test_a_stranger_learns_nothing_and_costs_nothing(etcd: Etcd, caplog: pytest.LogCaptureFixture) -> None:
    async with a_replica(etcd) as east:
        strangers = []
        for name in ("west/shop/cart-1", "x" * 10_000_000):
            strangers.append(join_tokens.new_token())
            with pytest.raises(Unauthenticated, match="unknown in this cluster") as refusal:
                await east.admissions.admit(node(name), strangers[-1])
            assert "east" not in str(refusal.value)
        with pytest.raises(Refused) as refusal:
            await east.admit("east/shop/" + "x" * 10_000_000, await east.token())
        assert len(str(refusal.value)) < 1000
        with pytest.raises(Unauthenticated):
            await east.admissions.admit(node(strangers[0]), "Basic " + "x" * 1_000_000)  # shown as a name
        told = [str(vars(record)) for record in caplog.records] + [repr(event) for event in east.events]
        assert all(len(one) < 3000 for one in told)
        assert not any(stranger in one for stranger in strangers for one in told)


async def test_known_proxies_come_back_while_etcd_is_away_and_strangers_wait(etcd: Etcd) -> None:
    async with EtcdClient((etcd.url,)) as client:
        east = Replica(client)  # which does not follow the tokens: it knows only whom it has seen
        known, stranger, once = await east.token(), await east.token(), await east.token(once=True)
        await east.admit("east/shop/cart-1", known)
        east.tokens._known.pop(stranger.id)
        await etcd.kill()
        await east.admit("east/shop/cart-2", known)
        with pytest.raises(Unavailable):
            await east.admit("east/shop/cart-3", stranger)
        with pytest.raises(Unavailable, match="cannot be claimed"):
            await east.admit("east/shop/cart-3", once)


async def test_a_frozen_etcd_keeps_nobody_waiting_whom_we_know(etcd: Etcd) -> None:
    async with a_replica(etcd) as east:
        token = await east.token()
        await east.admit("east/shop/cart-1", token)
        etcd.pause()
        async with asyncio.timeout(5):  # the limit of the ADS server
            await east.admit("east/shop/cart-1", token)
        etcd.resume()


async def test_a_token_for_one_proxy_admits_the_first_and_it_may_come_back(etcd: Etcd) -> None:
    async with a_replica(etcd) as east, a_replica(etcd) as other:
        token = await east.token(once=True)
        with pytest.raises(Refused):
            await east.admit("east/bank/cart-1", token)  # may never be its node: takes nothing
        answers = await asyncio.gather(
            *(one.admit(f"east/shop/cart-{n}", token) for n, one in enumerate([east, other, east, other])),
            return_exceptions=True,
        )
        admitted = [n for n, answer in enumerate(answers) if isinstance(answer, Admitted)]
        assert len(admitted) == 1
        assert all(isinstance(answer, Admitted | Unauthenticated) for answer in answers)
        claimant = f"east/shop/cart-{admitted[0]}"
        for one in (east, other):
            await one.admit(claimant, token)
            with pytest.raises(Unauthenticated, match="another one has used it") as refusal:
                await one.admit("east/shop/cart-9", token)
            assert claimant not in str(refusal.value)
            assert claimant in one.events[-1].reason  # for those who look whether it was stolen
        (known,) = await east.tokens.list()
        assert (known.state, known.claimed_by) == (TokenState.USED, claimant)
        assert [*east.kinds, *other.kinds].count("token-claimed") == 1


async def test_revoking_a_token_ends_what_it_admitted_on_every_replica(etcd: Etcd) -> None:
    async with a_replica(etcd) as east, a_replica(etcd) as other:
        good, bad = await east.token(), await east.token()
        admitted = await other.admit("east/shop/cart-1", bad)
        unconcerned = await other.admit("east/shop/cart-1", good)
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(reason(other.admissions.ended(node("east/shop/cart-1"), admitted)))
            staying = group.create_task(other.admissions.ended(node("east/shop/cart-1"), unconcerned))
            await eventually(lambda: len(other.tokens._waiting) == 2, "both wait")
            gone = await east.tokens.revoke(bad.id, asked_by=ADMIN)
            assert (gone.id, gone.account) == (bad.id, "cart")
            assert "revoked" in await ending
            assert not staying.done()
            staying.cancel()
        with pytest.raises(Unauthenticated, match="unknown"):
            await other.admit("east/shop/cart-1", bad)
        assert [known.id for known in await other.tokens.list()] == [good.id]
        with pytest.raises(AdminRefused, match="no token"):
            await east.tokens.revoke(bad.id, asked_by=ADMIN)
        with pytest.raises(AttestationRefused):
            await east.tokens.revoke(good.token, asked_by=ADMIN)
        assert east.events[-1].kind == "token-revoked"
        assert east.events[-1].asked_by == ADMIN


async def test_a_token_that_expires_ends_what_it_admitted(etcd: Etcd) -> None:
    async with a_replica(etcd) as east:
        token = await east.token(ttl=1)
        admitted = await east.admit("east/shop/cart-1", token)
        await etcd.kill()  # nobody need be asked
        assert "expired" in await reason(east.admissions.ended(node("east/shop/cart-1"), admitted))
        with pytest.raises(Unauthenticated, match="expired"):
            await east.admit("east/shop/cart-1", token)


async def test_an_etcd_that_lost_its_data_takes_no_token_from_anybody(etcd: Etcd) -> None:
    async with a_replica(etcd) as east:
        token, once, revoked = await east.token(), await east.token(once=True), await east.token()
        admitted = await east.admit("east/shop/cart-1", token)
        await east.admit("east/shop/cart-1", once)
        await east.client.put(f"{TOKENS_PREFIX}{'0' * 64}", b"of which it knows only by following")
        await eventually(lambda: len(east.tokens._known) == 4, "it follows")
        await east.tokens.revoke(revoked.id, asked_by=ADMIN)
        async with asyncio.TaskGroup() as group:
            staying = group.create_task(east.admissions.ended(node("east/shop/cart-1"), admitted))
            await etcd.kill()
            etcd.wipe()
            await etcd.start()

            async def found() -> set[str]:
                try:
                    return {known.id for known in await east.tokens.list()}
                except AdminRefused:  # etcd has just come up
                    return set()

            await until(found, lambda ids: ids == {token.id, once.id})
            assert not staying.done()
            staying.cancel()
        await east.admit("east/shop/cart-1", token)
        with pytest.raises(Unauthenticated, match="another one"):
            await east.admit("east/shop/cart-2", once)


async def test_what_expired_long_ago_is_removed_by_the_leader(etcd: Etcd) -> None:
    async with a_replica(etcd) as east:
        old = await east.token(ttl=60)
        key = token_key(join_tokens.digest(old.token))
        found = await east.client.get(key)
        assert found is not None
        record = join_tokens.decode_record(found.value)
        longer_ago = msgspec.structs.replace(record, expires=datetime(2020, 1, 1, tzinfo=UTC))
        await east.client.put(key, join_tokens.encode_record(longer_ago))
        fresh = await east.token(ttl=60)
        await east.client.put(f"{TOKENS_PREFIX}{'0' * 64}", b"broken")
        await eventually(lambda: len(east.tokens._known) == 3, "all are known")
        states = {known.id: known.state for known in await east.tokens.list()}
        assert states == {old.id: TokenState.EXPIRED, fresh.id: TokenState.GOOD, "0" * 12: TokenState.BROKEN}
        async with asyncio.TaskGroup() as group:
            tidying = group.create_task(east.tokens.run_tidying())
            await eventually(lambda: "token-removed" in east.kinds, "it is removed")
            tidying.cancel()
        assert {known.id for known in await east.tokens.list()} == {fresh.id, "0" * 12}


class OfPod:
    """Proves one pod of shop/cart, or the gateway's, to whoever asks: as a bound service account token does."""

    def __init__(self, role: TokenRole) -> None:
        system = role is TokenRole.GATEWAY
        self.proof = Proof(
            namespace=Namespace("isthmus-system") if system else SHOP,
            account=ServiceAccount("gateway") if system else CART,
            role=role,
            how="kubernetes",
            reference="JTI=1",
            pod=PodBinding("cart-1", "1"),
        )

    def recognizes(self, credential: str) -> bool:
        return True

    async def attest(self, credential: str, *, now: datetime) -> Proof:
        return self.proof

    async def claim(self, credential: str, node: str, *, now: datetime) -> None: ...

    def ended(self, proof: Proof, node: str) -> Awaitable[AttestationRefused] | None:
        return None


@pytest.mark.parametrize(
    ("role", "right", "wrong"),
    [
        (TokenRole.SIDECAR, "east/shop/cart-1", ["east/shop/cart-2", "east/bank/cart-1", "east/cart-1"]),
        (TokenRole.GATEWAY, "east/cart-1", ["east/cart-2", "east/shop/cart-1", "east/isthmus-system/cart-1"]),
    ],
)
async def test_a_proof_that_is_bound_to_a_pod_is_for_that_pod(role: TokenRole, right: str, wrong: list[str]) -> None:
    events: list[AuditEvent] = []
    admissions = Admissions(SETTINGS, Door([OfPod(role)]), events.append)
    admitted = await admissions.admit(node(right), "x")
    for name in wrong:
        with pytest.raises(Refused):
            await admissions.admit(node(name), "x")
    assert [event.proof for event in events] == ["kubernetes JTI=1"] * len(wrong)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await admissions.ended(node(right), admitted)
