"""What the client asks etcd for, against the real one."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from federation.etcd import (
    NO_LEASE,
    Delete,
    EtcdClient,
    EtcdRefused,
    EtcdTls,
    EtcdUnavailable,
    Event,
    Fenced,
    Get,
    Guard,
    KeyValue,
    LeaseExpired,
    LeaseId,
    Listing,
    Put,
    Unchanged,
)
from tests.support.addresses import free_address
from tests.support.etcd import Etcd, start_etcd


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    async with start_etcd(tmp_path) as server:
        yield server


@pytest.fixture
async def client(etcd: Etcd) -> AsyncIterator[EtcdClient]:
    async with EtcdClient((etcd.url,)) as connected:
        yield connected


async def test_what_was_written_is_read(client: EtcdClient) -> None:
    first = await client.put("/a/x", b"one")
    second = await client.put("/a/x", b"\x00\xff")
    await client.put("/b", b"elsewhere")
    expected = KeyValue("/a/x", b"\x00\xff", create_revision=first, mod_revision=second)
    assert await client.get("/a/x") == expected
    assert await client.get("/a") is None
    assert await client.list("/a/") == Listing(second + 1, (expected,))


async def test_a_deleted_key_is_gone_and_deleting_twice_is_no_error(client: EtcdClient) -> None:
    await client.put("/a", b"x")
    await client.delete("/a")
    assert await client.get("/a") is None
    await client.delete("/a")


async def test_only_the_first_of_two_makes_a_key(client: EtcdClient) -> None:
    assert await client.put_if_absent("/a", b"first")
    assert not await client.put_if_absent("/a", b"second")
    found = await client.get("/a")
    assert found is not None
    assert found.value == b"first"


async def test_a_guarded_write_is_refused_once_the_guard_was_made_anew(client: EtcdClient) -> None:
    guard = Guard("/leader", await client.put("/leader", b"one"))
    await client.put("/data", b"by one", guard=guard)
    await client.put("/leader", b"one, written again but not made anew")
    await client.put("/data", b"by one, again", guard=guard)

    await client.delete("/leader")
    await client.put("/leader", b"two")
    with pytest.raises(Fenced):
        await client.put("/data", b"by one, late", guard=guard)
    with pytest.raises(Fenced):
        await client.delete("/data", guard=guard)
    found = await client.get("/data")
    assert found is not None
    assert found.value == b"by one, again"


async def test_a_transaction_does_one_branch_at_one_moment(client: EtcdClient) -> None:
    revision = await client.put("/a", b"old")
    done = await client.transact(
        [Unchanged("/a", revision), Guard("/b", 0)], [Put("/a", b"new"), Put("/b", b"new"), Get("/c")]
    )
    assert (done.succeeded, done.revision, done.found) == (True, revision + 1, (None,))
    listing = await client.list("/")
    assert {item.mod_revision for item in listing.items} == {revision + 1}

    late = await client.transact([Unchanged("/a", revision)], [Delete("/a")], [Get("/a"), Get("/b")])
    assert not late.succeeded
    assert [item and item.value for item in late.found] == [b"new", b"new"]


async def test_a_lease_takes_its_keys_along_when_it_ends(client: EtcdClient) -> None:
    lease = await client.grant_lease(timedelta(seconds=30))
    await client.put("/a", b"x", lease=lease)
    found = await client.get("/a")
    assert found is not None
    assert found.lease == lease
    assert await client.keep_alive(lease) == timedelta(seconds=30)
    await client.revoke(lease)
    assert await client.get("/a") is None


async def test_a_lease_that_is_gone_is_told_from_an_outage(client: EtcdClient) -> None:
    gone = LeaseId(4711)
    with pytest.raises(LeaseExpired):
        await client.keep_alive(gone)
    with pytest.raises(LeaseExpired):
        await client.put("/a", b"x", lease=gone)
    await client.revoke(gone)


async def test_a_lease_that_is_not_renewed_expires(client: EtcdClient) -> None:
    lease = await client.grant_lease(timedelta(seconds=0.5))  # a whole second
    await client.put("/a", b"x", lease=lease)
    changes = client.follow("/a")
    assert isinstance(await anext(changes), Listing)
    expired = await anext(changes)
    await changes.aclose()
    assert isinstance(expired, Event)
    assert expired.item is None


async def test_a_listing_may_be_larger_than_four_megabytes(client: EtcdClient) -> None:
    for index in range(6):
        await client.put(f"/a/{index}", bytes(1_000_000))
    listing = await client.list("/a/")
    assert sum(len(item.value) for item in listing.items) == 6_000_000


@pytest.mark.parametrize("size", [1_600_000, 3_000_000], ids=["more than etcd takes", "more than its gRPC takes"])
async def test_a_value_that_is_too_large_is_refused_not_an_outage(client: EtcdClient, size: int) -> None:
    with pytest.raises(EtcdRefused, match="larg"):
        await client.put("/a", bytes(size))
    assert await client.get("/a") is None


async def test_a_transaction_that_is_too_long_is_refused(client: EtcdClient) -> None:
    with pytest.raises(EtcdRefused, match="too many operations"):
        await client.transact([], [Put(f"/{index}", b"") for index in range(129)])


async def test_a_full_etcd_is_an_outage_that_passes(tmp_path: Path) -> None:
    async with (
        start_etcd(tmp_path, arguments=["--quota-backend-bytes", "5000000"]) as etcd,
        EtcdClient((etcd.url,)) as client,
    ):

        async def fill() -> None:
            for index in range(100):  # etcd looks at the size of its file, which lags behind
                await client.put(f"/{index}", bytes(1_000_000))

        with pytest.raises(EtcdUnavailable, match="space exceeded"):
            await fill()


async def test_every_call_says_that_etcd_is_unavailable(etcd: Etcd, client: EtcdClient) -> None:
    lease = await client.grant_lease(timedelta(seconds=30))
    await etcd.kill()
    for call in (
        lambda: client.get("/a"),
        lambda: client.list("/"),
        lambda: client.put("/a", b""),
        lambda: client.delete("/a"),
        lambda: client.put_if_absent("/a", b""),
        lambda: client.transact([], []),
        lambda: client.grant_lease(timedelta(seconds=30)),
        lambda: client.keep_alive(lease),
        lambda: client.revoke(lease),
    ):
        with pytest.raises(EtcdUnavailable, match=etcd.address):
            await call()


async def test_a_frozen_etcd_is_unavailable_within_the_timeout(etcd: Etcd) -> None:
    async with EtcdClient((etcd.url,), timeout=timedelta(seconds=0.3)) as client:
        lease = await client.grant_lease(timedelta(seconds=30))
        etcd.pause()
        with pytest.raises(EtcdUnavailable, match="did not answer within"):
            await client.get("/a")
        with pytest.raises(EtcdUnavailable, match="did not answer within"):
            await client.keep_alive(lease)
        etcd.resume()
        await client.put("/a", b"alive")


async def test_another_member_is_asked_when_one_is_away(etcd: Etcd) -> None:
    nobody = f"http://{free_address()}:2379"
    async with EtcdClient((nobody, etcd.url)) as client:
        assert await client.get("/a") is None  # a read looks further by itself
        await client.put("/a", b"x")
    async with EtcdClient((nobody, etcd.url)) as client:
        with pytest.raises(EtcdUnavailable):
            await client.put("/a", b"y")  # a write may have been done: only its caller knows whether to repeat it
        await client.put("/a", b"y")


async def test_etcd_with_mutual_tls(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    address = free_address()
    ours = {"ca": authority.cert_pem, "stranger": stranger.cert_pem}
    for name, issued in (("server", authority.issue_cert(address)), ("client", authority.issue_cert("control.test"))):
        ours |= {f"{name}-key": issued.private_key_pem, f"{name}-cert": issued.cert_chain_pems[0]}
    pem = {name: tmp_path / f"{name}.pem" for name in ours}
    for name, blob in ours.items():
        blob.write_to_path(str(pem[name]))

    arguments = [
        *("--cert-file", str(pem["server-cert"]), "--key-file", str(pem["server-key"])),
        *("--client-cert-auth", "--trusted-ca-file", str(pem["ca"])),
    ]
    known = EtcdTls(pem["ca"], pem["client-cert"], pem["client-key"])
    async with start_etcd(tmp_path, address=address, arguments=arguments, scheme="https") as etcd:
        async with EtcdClient((etcd.url,), tls=known) as client:
            await client.put("/a", b"x")
        async with EtcdClient((etcd.url,), tls=EtcdTls(pem["ca"])) as nameless:
            with pytest.raises(EtcdUnavailable):
                await nameless.get("/a")
        async with EtcdClient(
            (etcd.url,), tls=EtcdTls(pem["stranger"], pem["client-cert"], pem["client-key"])
        ) as distrustful:
            with pytest.raises(EtcdUnavailable):
                await distrustful.get("/a")


@pytest.mark.parametrize(
    "endpoint", ["", "127.0.0.1:2379", "http://127.0.0.1", "http://:2379", "http://h:x", "ftp://h:1", "http://h:1/v3"]
)
def test_what_is_no_endpoint_is_said_at_once(endpoint: str) -> None:
    with pytest.raises(ValueError, match="is not an endpoint of etcd"):
        EtcdClient((endpoint,))


def test_endpoint_and_tls_files_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        EtcdClient(("https://127.0.0.1:2379",))
    with pytest.raises(ValueError, match="does not fit"):
        EtcdClient(("http://127.0.0.1:2379",), tls=EtcdTls(tmp_path / "ca.pem"))
    with pytest.raises(ValueError, match="at least one"):
        EtcdClient(())


async def test_a_key_without_a_lease_says_so(client: EtcdClient) -> None:
    await client.put("/a", b"x")
    found = await client.get("/a")
    assert found is not None
    assert found.lease == NO_LEASE
