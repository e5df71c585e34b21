"""How drains reach control planes over HTTP; and `isthmus leave`, which does the same."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.admin_client import AdminClient
from deploy.cli.drain_mesh import DrainMesh
from deploy.cli.main import isthmus
from deploy.cli.survey import Silent
from federation.admin import DrainOrder
from tests.support.addresses import free_address
from tests.support.fake_admin import FakeMember, fake_members, served
from tests.support.serving import serve_tcp

NOBODY = "http://127.105.1.1:15014"  # nothing listens there


@pytest.fixture
def members() -> dict[str, FakeMember]:
    return fake_members("east", "south", "west")


Invoke = Callable[..., Any]


@pytest.fixture
async def invoke(members: dict[str, FakeMember], tmp_path: Path) -> AsyncIterator[Invoke]:
    """Runs a command against the members; `without` are those whose control planes are gone, or not named."""
    (tmp_path / "token").write_text("secret")
    async with served(members.values()) as urls:

        async def run(*words: str, gone: tuple[str, ...] = (), unnamed: tuple[str, ...] = ()) -> Result:
            contexts = {
                name: {"admin": NOBODY if name in gone else url, "token_file": str(tmp_path / "token")}
                for name, url in urls.items()
                if name not in unnamed
            }
            (tmp_path / "contexts.json").write_text(json.dumps(contexts))
            words = (words[0], "--contexts", str(tmp_path / "contexts.json"), *words[1:])
            return await asyncio.to_thread(CliRunner().invoke, isthmus, words)

        yield run


def mesh(urls: dict[str, str]) -> DrainMesh:
    return DrainMesh(list(urls), lambda name: AdminClient(urls[name], "secret"))


async def test_a_look_finds_who_answers_what_they_count_and_who_is_silent(members: dict[str, FakeMember]) -> None:
    members["south"].ready_pods = 3
    async with served(members.values()) as urls:
        look = await mesh({**urls, "west": NOBODY}).look()
    assert look.members.keys() == {"east", "south"}
    assert look.members["south"].unled == 2
    assert look.members["east"].loads[0].reporting == 1
    assert [one.cluster for one in look.not_reached(without=[])] == ["west"]
    assert look.not_reached(without=["west"]) == ()


async def test_all_replicas_are_asked_what_they_count(members: dict[str, FakeMember]) -> None:
    other = FakeMember("east", ("east",), sidecars=2)
    async with served([members["east"]]) as urls, served([other]) as others:
        members["east"].replicas = (urls["east"], others["east"])
        members["east"].ready_pods = 3
        look = await mesh(urls).look()
        assert [load.reporting for load in look.members["east"].loads] == [1, 2]
        assert look.members["east"].unled == 0
        members["east"].replicas = (urls["east"], NOBODY)
        lost = await mesh(urls).look()
    assert lost.members["east"].unled == 2
    assert NOBODY in lost.not_reached(without=["south", "west"])[0].cluster
    members["east"].ready_pods = 1
    async with served([members["east"]]) as urls:
        members["east"].replicas = (urls["east"], NOBODY)
        moved = await mesh(urls).look()
    assert moved.not_reached(without=["south", "west"]) == (), "its sidecars are all at the other replica"


async def test_one_that_answers_in_another_name_is_not_believed(members: dict[str, FakeMember]) -> None:
    async with served(members.values()) as urls:
        look = await mesh({"east": urls["east"], "west": urls["south"]}).look()
    assert look.silent == (Silent("west", "says that it is south: check its address"),)


async def test_one_that_has_not_joined_is_silent_with_its_reason(members: dict[str, FakeMember]) -> None:
    members["west"].is_joined = False
    async with served(members.values()) as urls:
        look = await mesh(urls).look()
    assert look.silent == (Silent("west", "west is no member of a mesh yet"),)


async def test_members_are_told_and_their_refusals_come_back(members: dict[str, FakeMember]) -> None:
    members["south"].refuses = "etcd is read-only"
    order = DrainOrder("west", 40, "shop/cart")
    async with served(members.values()) as urls:
        reached = mesh(urls)
        look = await reached.look()
        assert await reached.drain(look, {"east": order, "south": order}) == (Silent("south", "etcd is read-only"),)
        assert members["east"].asked == [order]
        assert await reached.undrain(look, ["east"], cluster="west", service="shop/cart") == ()
        assert members["east"].asked == []
        assert (await reached.services(look)).keys() == {"east", "south", "west"}


async def test_a_drain_and_its_undoing_as_people_type_them(members: dict[str, FakeMember], invoke: Invoke) -> None:
    done = await invoke("drain", "west", "--over", "0s", "--grace", "20s", "--force", "-o", "json")
    assert done.exit_code == 0, done.output
    assert members["west"].asked == [DrainOrder("west", 0)]
    said = json.loads(done.stdout)
    assert (said["isDone"], said["cluster"], said["weight"]) == (True, "west", 0)
    back = await invoke("undrain", "west")
    assert back.exit_code == 0, back.output
    assert "west has its full weight again in all members." in back.stdout
    assert members["west"].asked == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["west", "--abort-on", "error-rate"], "in quotes"),
        (["west", "--abort-on", "latency>1s"], "is no rule"),
        (["west", "--service", "cart"], "is no NAMESPACE/NAME"),
        (["west", "--over", "fast"], "no span of time"),
        ([], "Missing argument 'CLUSTER'"),
    ],
)
def test_a_drain_that_is_typed_wrong_is_wrong_usage(words: list[str], message: str) -> None:
    result = CliRunner().invoke(isthmus, ["drain", *words])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


async def test_a_cluster_leaves_and_the_others_hear_it(members: dict[str, FakeMember], invoke: Invoke) -> None:
    done = await invoke("leave", "west", "--yes", "-o", "json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["isDone"], said["byItself"]) == (True, True)
    assert {one["cluster"]: one["state"] for one in said["members"]} == {"east": "heard", "south": "heard"}
    assert members["east"].forgot == []


async def test_who_does_not_hear_the_farewell_is_told_to_forget(members: dict[str, FakeMember], invoke: Invoke) -> None:
    members["south"].heard.remove(members["west"])
    done = await invoke("leave", "west", "--wait", "0s")
    assert done.exit_code == 0, done.output
    assert (members["east"].forgot, members["south"].forgot) == ([], ["west"])
    assert "isthmus revoke west --root DIR" in done.stdout
    assert "west has left the mesh." in done.stdout


async def test_a_lost_cluster_is_forgotten_only_by_force(members: dict[str, FakeMember], invoke: Invoke) -> None:
    no = await invoke("leave", "west", gone=("west",))
    assert no.exit_code == 1
    assert "west cannot be asked to leave" in getattr(no.exception, "message", "")
    assert members["east"].forgot == []
    done = await invoke("leave", "west", "--force", gone=("west",))
    assert done.exit_code == 0, done.output
    assert (members["east"].forgot, members["south"].forgot) == (["west"], ["west"])
    assert "if it comes back, it is a member again" in done.stdout


async def test_who_cannot_be_told_of_a_departure_is_named(members: dict[str, FakeMember], invoke: Invoke) -> None:
    left = await invoke("leave", "west", "--force", gone=("west",), unnamed=("south",))
    assert left.exit_code == 1
    assert "south" in left.stdout
    assert "isthmus leave west --force" in left.stdout
    members["east"].refuses = "etcd is read-only"
    refused = await invoke("leave", "west", "--force", gone=("west",))
    assert refused.exit_code == 1
    assert "etcd is read-only" in refused.stdout


async def test_who_left_before_need_not_know(members: dict[str, FakeMember], invoke: Invoke) -> None:
    members["south"].left.add("south")
    done = await invoke("leave", "west", "--force", "-o", "json", gone=("west",))
    assert done.exit_code == 0, done.output
    assert [one["cluster"] for one in json.loads(done.stdout)["members"]] == ["east"]
    assert members["south"].forgot == []


async def test_a_cluster_that_refuses_to_leave_says_why(members: dict[str, FakeMember], invoke: Invoke) -> None:
    members["west"].refuses = "etcd is read-only"
    no = await invoke("leave", "west")
    assert (no.exit_code, getattr(no.exception, "message", "")) == (1, "west does not leave: etcd is read-only")


async def test_nobody_leaves_by_a_wrong_name(invoke: Invoke) -> None:
    no = await invoke("leave", "wset")
    assert getattr(no.exception, "hint", "") == "did you mean west?"


async def test_a_control_plane_that_hangs_does_not_hold_up_the_look(members: dict[str, FakeMember]) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)  # until the other side gives up
        writer.close()

    address = free_address()
    async with served([members["east"]]) as urls, serve_tcp(hang, address, 15014):
        look = await mesh({**urls, "west": f"http://{address}:15014"}).look()
    assert look.members.keys() == {"east"}
    assert "nothing came within 3 s" in look.silent[0].reason
