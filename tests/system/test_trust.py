"""Keys rotate and clusters are cut off while traffic flows, by the commands that an operator has."""

import json
from pathlib import Path
from typing import Any

from tests.support.mesh import Isthmus, eventually
from tests.system.conftest import CART

CLIENT = "east/shop/client"
WESTERNER = "west/shop/files"
"""A workload of west that calls: with west's own carts gone, the nearest are east's."""


def root_of(mesh: Isthmus) -> str:
    [root] = [path for path in mesh.home.rglob("root") if path.is_dir()]
    return str(root)


def trust(mesh: Isthmus, *words: str, code: int | None = 0) -> str:
    """Runs `isthmus trust WORDS` on the lab and returns all that it said."""
    done = mesh.run("--lab", mesh.name, "trust", *words, seconds=120, code=code)
    return done.stdout + done.stderr


def status(mesh: Isthmus) -> Any:
    return json.loads(mesh.run("--lab", mesh.name, "trust", "status", "-o", "json", code=None).stdout)


def revoke(mesh: Isthmus, *words: str) -> str:
    return mesh.run("--lab", mesh.name, "revoke", *words, "--yes", seconds=60).stdout


def answers(mesh: Isthmus, target: str) -> set[str]:
    """Returns the statuses and clusters that ten calls of the cart got."""
    return {one.split("/")[0] for one in mesh.sequential(target, CART, 10)}


def kill_carts(mesh: Isthmus, cluster: str, count: int) -> None:
    """From now on calls of the cart cross to another cluster. Its sidecars live on: who is away would be waited for."""
    for number in range(1, count + 1):
        mesh.lab("kill", f"{cluster}/shop/cart-{number}/app")


def is_served(mesh: Isthmus, target: str) -> bool:
    """Says whether a single one of ten calls got a good answer. A revoked workload has not even its own sidecar."""
    words = ("lab", "load", "--name", mesh.name, target, CART, "--rate", "10", "--duration", "1s", "-o", "json")
    return bool(json.loads(mesh.run(*words, code=None).stdout)["ok"])


def keys_on_disk(mesh: Isthmus) -> set[str]:
    return {str(path.relative_to(mesh.home)) for path in mesh.home.rglob("*-key.pem")}


def test_intermediate_and_root_rotate_under_load(mesh: Isthmus) -> None:
    kill_carts(mesh, "east", 2)
    before = keys_on_disk(mesh)
    load = mesh.start_load(CLIENT, CART, rate=100)
    trust(mesh, "rotate", "intermediate", "west", "--root", root_of(mesh), "--wait", "60s")
    trust(mesh, "rotate", "root", "--root", root_of(mesh), "--wait", "60s")
    report = load.report()
    assert report["failed"] == 0, report
    eventually(lambda: len(keys_on_disk(mesh)) == len(before))
    assert not keys_on_disk(mesh) & before, "a key that was rotated away is still on disk"


def test_a_root_rotation_waits_for_the_member_that_is_away(mesh: Isthmus) -> None:
    mesh.lab("kill", "south/control")
    said = trust(mesh, "rotate", "root", "--root", root_of(mesh), "--wait", "8s", code=1)
    assert "south" in said
    assert "east" not in {word for line in said.splitlines() if "south" in line for word in line.split()[:1]}
    mesh.lab("start", "south/control")
    trust(mesh, "rotate", "root", "--root", root_of(mesh), "--wait", "60s")
    eventually(lambda: mesh.run("--lab", mesh.name, "trust", "status", code=None).returncode == 0)
    assert answers(mesh, CLIENT) == {"200 east"}


def test_a_revoked_cluster_is_cut_off_and_nobody_else(mesh: Isthmus) -> None:
    kill_carts(mesh, "west", 3)
    eventually(lambda: is_served(mesh, WESTERNER))
    others = mesh.start_load(CLIENT, CART, rate=100)
    revoke(mesh, "west", "--reason", "test")
    assert not is_served(mesh, WESTERNER)
    assert [row["name"] for row in mesh.ask("east", "clusters") if row["revoked"]] == ["west"]
    revoke(mesh, "west", "--undo")
    eventually(lambda: is_served(mesh, WESTERNER))
    report = others.report()
    assert report["failed"] == 0, report


def test_a_revoked_workload_is_cut_off_and_nobody_else(mesh: Isthmus) -> None:
    kill_carts(mesh, "west", 3)
    eventually(lambda: is_served(mesh, WESTERNER))
    others = mesh.start_load(CLIENT, CART, rate=100)
    revoke(mesh, "workload", "shop/files@west", "--reason", "test")
    eventually(lambda: not is_served(mesh, WESTERNER))
    revoke(mesh, "workload", "shop/files@west", "--undo")
    eventually(lambda: is_served(mesh, WESTERNER))
    report = others.report()
    assert report["failed"] == 0, report


def test_a_signed_revocation_reaches_all_through_one_member(mesh: Isthmus) -> None:
    revoke(mesh, "workload", "shop/client@east", "--root", root_of(mesh))
    eventually(lambda: not is_served(mesh, CLIENT))
    revoke(mesh, "workload", "shop/client@east", "--root", root_of(mesh), "--undo")
    eventually(lambda: is_served(mesh, CLIENT))


def test_no_key_and_no_token_lies_open(mesh: Isthmus) -> None:
    """Not in etcd's data, not in a log, not in what the admin API says, and in no file that others can read."""
    folder = next(path for path in mesh.home.rglob("labs/*") if path.is_dir())
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.endswith("-key.pem"):
            continue
        body = path.read_bytes()
        assert b"PRIVATE KEY" not in body, path
        if _is_about_etcd_or_log(path):
            assert b"isthmus-" not in body.replace(b"isthmus-system", b"").replace(b"isthmus-control", b""), path
    for key in folder.rglob("*-key.pem"):
        assert key.stat().st_mode & 0o077 == 0, key


def _is_about_etcd_or_log(path: Path) -> bool:
    return "etcd" in path.parts or path.suffix == ".log"
