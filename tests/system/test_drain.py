"""A cluster is drained under load: calls leave it without a failure, what is open lives on, and all comes back."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import Command
from tests.support.mesh import Isthmus, eventually
from tests.system.conftest import PROGRAMS

CLIENT = "east/shop/client"
ECHO = "http://echo.shop.svc.clusterset.local/"
ONLY_WEST = ["shop/files", "shop/redis", "shop/rpc", "shop/socket"]


@contextmanager
def held_open(mesh: Isthmus, folder: Path) -> Iterator[Path]:
    """A gRPC stream and a TCP connection from east, busy until the file `stop` exists; gives the file that tells."""
    file, stop = folder / "held.json", folder / "stop"
    program = str(PROGRAMS / "echo.py")
    words = f"exec {sys.executable} {program} hold echo.shop.svc.clusterset.local:50052 $LINES {file} {stop}"
    held = mesh.start("lab", "exec", "--name", mesh.name, CLIENT, "--", "sh", "-c", words)
    try:
        yield file
    finally:
        stop.touch()
        held.communicate(60)


@pytest.fixture(autouse=True)
def undrained(mesh: Isthmus) -> Iterator[None]:
    """Leaves no drain behind, whatever a test came to."""
    yield
    for words in (("west",), ("west", "--service", "shop/echo")):
        mesh.run("--lab", mesh.name, "undrain", *words)


def seen(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else {}


def finished(started: Command, *, code: int) -> tuple[Any, str]:
    out, err = started.communicate(120)
    assert started.returncode == code, f"{out}\n{err}"
    return json.loads(out), err


def weights(mesh: Isthmus, member: str) -> list[int]:
    """Returns the weights of a member as east sees them."""
    return [drain["weight"] for row in mesh.ask("east", "clusters") if row["name"] == member for drain in row["drains"]]


def answered_by(mesh: Isthmus, count: int = 20) -> set[str]:
    return {upstream.split("/")[0] for upstream in mesh.sequential(CLIENT, ECHO, count)}


def test_a_cluster_is_drained_under_load_and_nothing_fails(mesh: Isthmus, tmp_path: Path) -> None:
    eventually(lambda: answered_by(mesh) == {"200 west"})  # the nearest: it is in the same cloud
    with held_open(mesh, tmp_path) as file:
        eventually(lambda: seen(file).get("grpc") == seen(file).get("tcp") == "west")
        load = mesh.start_load(CLIENT, ECHO, rate=100)
        words = ("drain", "west", "--over", "5s", "--grace", "2m", "--abort-on", "error-rate>1%", "--force")
        drain = mesh.start("--lab", mesh.name, *words, "-o", "json")
        try:
            eventually(lambda: weights(mesh, "west") == [0])
            eventually(lambda: answered_by(mesh) == {"200 south"})
            before = seen(file)
            assert not before["broken"], before
            eventually(lambda: seen(file)["grpcMessages"] > before["grpcMessages"] + 20)
            assert drain.returncode is None, drain.communicate(1)
            assert seen(file)["grpc"] == seen(file)["tcp"] == "west"
            assert not seen(file)["broken"]
        finally:
            (tmp_path / "stop").touch()
        done, said = finished(drain, code=0)
    assert not seen(file)["broken"]
    assert (done["isDone"], done["isEmpty"], done["weight"], done["aborted"]) == (True, True, 0, "")
    assert done["kept"] == ONLY_WEST, "nobody else offers them"
    assert [step["weight"] for step in done["steps"]] == [80, 60, 40, 20, 0]
    assert done["steps"][0]["open"] >= 2, "the stream and the connection are counted"
    assert done["steps"][-1]["open"] == 0
    assert "these stay, nobody else offers them: shop/files" in said
    report = load.report()
    assert report["failed"] == 0, report
    assert {one["cluster"] for one in report["answeredBy"]} == {"west", "south"}
    back = mesh.json("--lab", mesh.name, "undrain", "west")
    assert back["isDone"]
    assert {one["weight"] for one in back["weights"]} == {100}
    eventually(lambda: answered_by(mesh) == {"200 west"})


def test_a_drain_that_others_cannot_bear_is_undone(mesh: Isthmus, sick: Path) -> None:
    (sick / "south-echo-1").touch()
    try:
        load = mesh.start_load(CLIENT, ECHO, rate=100)
        words = ("drain", "west", "--service", "shop/echo", "--over", "30s", "--abort-on", "error-rate>1%")
        aborted, said = finished(mesh.start("--lab", mesh.name, *words, "-o", "json"), code=1)
    finally:
        (sick / "south-echo-1").unlink()
    assert aborted["aborted"].startswith("error-rate>1%: ")
    assert aborted["weight"] == 100
    assert aborted["steps"][-1]["errors"]["failed"] >= 3
    assert "Aborting, restoring the weight of shop/echo in west" in said
    assert weights(mesh, "west") == []
    assert load.report()["failed"] <= 20, "three answers eject the sick pod, and three more when it is let in again"
    assert answered_by(mesh) == {"200 west"}
