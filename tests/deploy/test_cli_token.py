"""`isthmus token` against a whole control plane with a real proxy, and what the audit trail says of it all."""

import asyncio
import json
import re
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from deploy.cli.token import token as group
from federation.xds.bootstrap import token_file
from tests.support.addresses import free_address
from tests.support.control import (
    DOMAIN,
    Control,
    Ran,
    isthmus,
    join,
    pod,
    start_control,
    start_proxy,
    until,
    write_contexts,
)
from tests.support.trust import init_root
from tests.support.waiting import eventually
from trust.audit import AuditEvent
from trust.join_tokens import digest, new_token, token_id
from trust.root import Root
from trust.spiffe import MeshDomain


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "root", MeshDomain(DOMAIN), now=datetime.now(UTC))


@pytest.fixture
async def east(tmp_path: Path) -> AsyncIterator[Control]:
    async with start_control(tmp_path / "east", "east", "--stream-max-age", "1m") as control:
        yield control


async def token(east: Control, *arguments: str) -> Ran:
    contexts = write_contexts(east.folder / "contexts.json", east)
    return await isthmus("token", *arguments, contexts=contexts)


def trail(east: Control) -> list[AuditEvent]:
    lines = (east.data / "audit-control-1.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=AuditEvent) for line in lines]


async def test_tokens_are_made_listed_and_revoked(east: Control) -> None:
    empty = await token(east, "list")
    assert "There are no join tokens" in empty.stdout
    ran = await asyncio.gather(
        token(east, "create", "-n", "shop", "--service-account", "cart"),
        token(east, "create", "-n", "shop", "--service-account", "client", "--ttl", "24h", "--once", "-o", "json"),
        token(east, "create", "--gateway", "--ttl", "1s", "-o", "json"),
    )
    assert [one.code for one in ran] == [0, 0, 0], ran
    plain, once, short = ran[0].stdout.strip(), json.loads(ran[1].stdout), json.loads(ran[2].stdout)
    assert plain.startswith("isthmus-")
    assert once["once"]
    assert once["id"] == token_id(digest(once["token"]))
    async with east.client() as client:
        await until(client.tokens, lambda found: "expired" in [one.state for one in found])
    listed = (await token(east, "list")).stdout
    rows = {line.split()[0]: re.split(r"\s{2,}", line.strip()) for line in listed.splitlines()}
    assert rows["ID"] == ["ID", "FOR", "ROLE", "STATE", "AGE", "EXPIRES IN", "LAST USED"]
    assert rows[token_id(digest(plain))][1:4] == ["shop/cart", "sidecar", "good"]
    assert rows[once["id"]][1:4] == ["shop/client", "sidecar", "good, once"]
    assert rows[short["id"]][1:4] == ["isthmus-system/gateway", "gateway", "expired"]
    assert not any(one in listed for one in (plain, once["token"], short["token"]))
    gone = await token(east, "revoke", once["id"])
    assert (gone.code, gone.stdout) == (0, f"The token {once['id']} of shop/client is revoked.\n")
    left = json.loads((await token(east, "list", "-o", "json")).stdout)
    assert {one["id"] for one in left} == {token_id(digest(plain)), short["id"]}
    assert [event.kind for event in trail(east)] == ["token-created"] * 3 + ["token-revoked"]
    assert {event.asked_by for event in trail(east)} == {"admin at 127.0.0.1"}


async def test_a_wrong_order_is_an_error_with_a_hint(east: Control) -> None:
    secret = new_token()
    orders = {
        ("revoke", "3fa9c1d27b60"): "there is no token 3fa9c1d27b60",
        ("revoke", secret): "that is not the id of a token",
        ("create", "-n", "shop", "--service-account", "Cart"): "is not a namespace and a service account",
        ("create", "-n", "isthmus-system", "--service-account", "control"): "no workload may be",
    }
    answers = await asyncio.gather(*(token(east, *order) for order in orders))
    for ran, said in zip(answers, orders.values(), strict=True):
        assert ran.code == 1
        assert ran.stderr.startswith("error: ")
        assert said in ran.stderr
        assert "hint: " in ran.stderr
        assert secret not in ran.stderr + east.log


@pytest.mark.parametrize("wrong", [["--ttl", "0s", "--service-account", "a"], ["--ttl", "soon"], ["--gateway"], []])
def test_an_order_that_contradicts_itself_is_wrong_usage(wrong: list[str]) -> None:
    result = CliRunner().invoke(group, ["create", "-n", "shop", *wrong])
    assert result.exit_code == 2, result.output


async def test_the_trail_of_a_proxy_is_whole_and_holds_no_secret(east: Control, root: Root) -> None:
    await join(root, east)
    address = free_address()
    east.write("pods.yaml", pod("cart-1", "cart", address))
    async with start_proxy(east, root, "east/shop/cart-1", address=address, account="cart") as proxy:
        await proxy.wait_live()
        async with east.client() as client:
            (known,) = await client.tokens()
            wrong = await client.create_token("shop", "other")
            await client.revoke_token(known.id)
            await eventually(lambda: "the join token is unknown" in east.log, "it is refused")
            file = east.folder / "east-shop-cart-1" / "token.json"
            (file.parent / "draft").write_text(token_file(wrong.token))
            (file.parent / "draft").rename(file)
            await eventually(lambda: "runs as cart" in east.log, "it is refused for another reason")
    events = trail(east)
    identity = f"spiffe://east.{DOMAIN}/ns/shop/sa/cart"
    (issued,) = [event for event in events if event.kind == "issued" and event.subject == identity]
    assert issued.proof == f"join-token {known.id}"
    assert issued.asked_by == "east/shop/cart-1 (127.0.0.1)"
    assert int(issued.serial, 16)
    assert issued.expires is not None
    assert issued.authority
    own = [event for event in events if event.kind == "issued" and event.subject.endswith("/sa/control")]
    assert own
    reasons = [(event.proof, event.reason) for event in events if event.kind == "refused"]
    assert reasons[0] == (f"join-token {known.id}", "the join token was revoked")
    assert reasons[1] == (f"join-token {known.id}", "the join token is unknown in this cluster")
    assert len(reasons) == 3  # however often it tried
    assert {"joined", "token-created", "token-revoked"} <= {event.kind for event in events}
    assert stat.S_IMODE((east.data / "audit-control-1.jsonl").stat().st_mode) == 0o600
    told = east.log + (east.data / "audit-control-1.jsonl").read_text()
    shown = json.loads(file.read_text())["resources"][0]["generic_secret"]["secret"]["inline_string"]
    assert shown == wrong.token
    keys = [line for path in east.data.glob("*key*.pem") for line in path.read_text().splitlines()[1:-1]]
    assert keys
    for secret in (shown, digest(shown), (east.data / "admin-token").read_text().strip(), "-----BEGIN", *keys):
        assert secret not in told
