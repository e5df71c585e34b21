"""Files and names of a lab, and what the command line says when something is wrong."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.failures import CommandFailed
from deploy.lab.addresses import ETCD_CLIENT_PORT, assign
from deploy.lab.plan import read_plan
from deploy.lab.startup import claim_slot
from deploy.lab.state import Folder, NameTaken, claim, folder, is_claimed, make_anew, socket_path, write_atomically
from deploy.lab.targets import Kind, ProcessId

PLAN = read_plan("clusters: [{name: east, region: eu}]", "lab.yaml")
ETCD = ProcessId("east", Kind.ETCD, 0)
APP = ProcessId("east", Kind.APP, 2, namespace="shop", workload="cart-x")


def isthmus(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command line as its users do."""
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli.main", *words],
        env={"ISTHMUS_HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_two_labs_have_different_slots() -> None:
    with claim_slot(PLAN) as first, claim_slot(PLAN) as second:
        assert first != second


def test_a_slot_where_another_program_listens_is_left_to_it() -> None:
    with claim_slot(PLAN) as slot:
        etcd = assign(PLAN, slot).clusters["east"].etcd[0]
    with socket.create_server((etcd, ETCD_CLIENT_PORT)), claim_slot(PLAN) as other:
        assert other != slot


def test_a_name_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    lab, other = Folder("one", tmp_path / "one"), Folder("two", tmp_path / "two")
    assert not is_claimed(lab)
    with claim(lab):
        assert is_claimed(lab)
        with pytest.raises(NameTaken), claim(lab):
            pass
        with claim(other):
            assert is_claimed(other)
    assert not is_claimed(lab)


def test_a_lab_is_made_anew_but_never_over_somebody_elses_files(tmp_path: Path) -> None:
    lab = Folder("one", tmp_path / "one")
    make_anew(lab)
    assert lab.path.stat().st_mode & 0o777 == 0o700
    lab.log(ETCD).write_text("old\n")
    lab.log(APP).write_text("old\n")
    assert lab.logs() == {ETCD: lab.log(ETCD), APP: lab.log(APP)}
    make_anew(lab)
    assert lab.logs() == {}
    lab.mark.unlink()
    (lab.path / "precious").write_text("mine")
    with pytest.raises(CommandFailed, match="no lab made it"):
        make_anew(lab)
    assert (lab.path / "precious").read_text() == "mine"


def test_a_deep_home_still_has_a_socket(tmp_path: Path) -> None:
    for name in ("short", "long" * 40):
        lab = Folder(name, tmp_path / name)
        with socket_path(lab) as path:
            assert len(os.fsencode(path)) <= 107
            assert path.parent == lab.path or path.parent.stat().st_mode & 0o777 == 0o700
        assert path.parent == lab.path or not path.parent.exists()


def test_files_are_replaced_whole_and_private(tmp_path: Path) -> None:
    file = tmp_path / "token.json"
    write_atomically(file, "one")
    write_atomically(file, "two")
    assert file.read_text() == "two"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["token.json"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "Lab"])
def test_a_lab_is_not_called_like_a_path(name: str) -> None:
    with pytest.raises(CommandFailed, match="not the name of a lab"):
        folder(name)


def test_who_asks_a_lab_that_does_not_run_is_told_how_to_start_it(tmp_path: Path) -> None:
    for words in (["status"], ["kill", "east"], ["exec", "east", "--", "true"], ["cut", "east", "west"], ["down"]):
        done = isthmus(tmp_path, "lab", *words, *([] if "exec" in words else ["--name", "one"]))
        assert done.returncode == 1
        assert "is not running" in done.stderr
        assert "hint: isthmus lab up" in done.stderr


def test_a_broken_lab_file_is_reported_by_line_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("clusters:\n  - name: east\n    region: eu\n    gateways: none\n")
    for detach in ([], ["--detach"]):
        done = isthmus(tmp_path / "home", "lab", "up", str(file), *detach)
        assert done.returncode == 1
        assert f"{file}:4: clusters[0].gateways:" in done.stderr
    assert not (tmp_path / "home" / "labs" / "lab").exists()
    missing = isthmus(tmp_path / "home", "lab", "up", str(tmp_path / "none.yaml"))
    assert (missing.returncode, "cannot be read" in missing.stderr) == (1, True)


def test_ctrl_c_ends_a_command_with_130_and_no_other_word(tmp_path: Path) -> None:
    log = Folder("lab", tmp_path / "labs" / "lab").log(ETCD)
    log.parent.mkdir(parents=True)
    log.write_text("hello\n")
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.cli.main", "lab", "logs", "east/etcd", "--follow"],
        env={"ISTHMUS_HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "hello\n"
        following.send_signal(signal.SIGINT)
        _, said = following.communicate(timeout=60)
    assert (following.returncode, said.strip()) == (130, "")


def test_manifests_that_are_not_there_are_named(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("clusters:\n  - {name: east, region: eu, manifests: [nowhere]}\n")
    done = isthmus(tmp_path / "home", "lab", "up", str(file))
    assert done.returncode == 1
    assert "no manifests at nowhere" in done.stderr
