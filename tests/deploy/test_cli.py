"""The command line itself: it answers fast, says what went wrong and what to do, and speaks to programs too."""

import json
import subprocess
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from deploy.admin_client import AdminClient
from deploy.cli.main import COMMANDS, isthmus
from deploy.cli.output import show, table
from deploy.cli.targets import Targets
from deploy.contexts import Context, read_contexts
from deploy.failures import CommandFailed
from tests.support import control


def test_help_names_every_command_and_imports_none() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from deploy.cli.main import isthmus;"
        "result = CliRunner().invoke(isthmus, ['--help']); print(result.output);"
        "heavy = {'grpc', 'aiohttp', 'cryptography', 'rich', 'msgspec', 'yaml'} & sys.modules.keys();"
        "sys.exit(f'imported for nothing: {heavy}' if heavy else result.exit_code)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for name in COMMANDS:
        assert name in ran.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists_and_has_help(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    assert isinstance(getattr(import_module(module), attribute), click.Command)
    result = CliRunner().invoke(isthmus, [name, "--help"])
    assert result.exit_code == 0, result.output


def test_an_unknown_command_is_wrong_usage_and_the_nearest_is_named() -> None:
    result = CliRunner().invoke(isthmus, ["statsu"])
    assert result.exit_code == 2
    assert "Did you mean 'status'?" in result.output


async def test_a_command_without_a_control_plane_says_what_to_do(tmp_path: Path) -> None:
    ran = await control.isthmus("clusters", contexts=tmp_path / "none.json")
    assert ran.code == 1
    assert ran.stderr.startswith("error: no control plane to ask")
    assert "hint: start a lab with `isthmus lab up`" in ran.stderr


async def test_a_control_plane_that_does_not_answer_is_an_error_with_a_hint() -> None:
    ran = await control.isthmus("services", "--admin", f"http://{control.free_address()}:15014")
    assert ran.code == 1
    assert "error: no answer from the control plane at http://127." in ran.stderr
    assert "hint: is it running?" in ran.stderr
    assert "Traceback" not in ran.stderr


async def test_a_root_that_is_not_there_is_an_error_with_a_hint(tmp_path: Path) -> None:
    ran = await control.isthmus("trust", "show", "--root", str(tmp_path / "none"))
    assert ran.code == 1
    assert ran.stderr.startswith("error: ")
    assert "hint: " in ran.stderr


async def test_a_root_is_made_once_with_a_private_key_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    made = await control.isthmus("trust", "init", "--domain", "mesh.test", "--out", str(root), "-o", "json")
    assert made.code == 0, made.stderr
    assert json.loads(made.stdout)["domain"] == "mesh.test"
    before = {file.name: file.read_bytes() for file in root.iterdir()}
    again = await control.isthmus("trust", "init", "--domain", "mesh.test", "--out", str(root))
    assert again.code == 1
    assert {file.name: file.read_bytes() for file in root.iterdir()} == before
    assert all(file.stat().st_mode & 0o077 == 0 for file in root.iterdir())


async def test_a_root_with_a_passphrase_opens_with_it_only(tmp_path: Path) -> None:
    root, right, wrong = str(tmp_path / "root"), tmp_path / "right", tmp_path / "wrong"
    right.write_text("open sesame\n")
    wrong.write_text("open barley\n")
    domain = ("--domain", "mesh.test")
    assert (await control.isthmus("trust", "init", *domain, "--out", root, "--passphrase-file", str(right))).code == 0
    shown = await control.isthmus("trust", "show", "--root", root, "--passphrase-file", str(right), "-o", "yaml")
    assert yaml.safe_load(shown.stdout)["domain"] == "mesh.test"
    assert (await control.isthmus("trust", "show", "--root", root, "--passphrase-file", str(wrong))).code == 1
    missing = await control.isthmus("trust", "show", "--root", root)
    assert "--passphrase-file" in missing.stderr


def test_a_wrong_domain_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    result = CliRunner().invoke(isthmus, ["trust", "init", "--domain", "mesh", "--out", str(tmp_path / "root")])
    assert result.exit_code == 1
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--leaf-lifetime", "30s"], "at least 60s"),
        (["--leaf-lifetime", "soon"], "no span of time"),
        (["--cluster", "East"], "is not a cluster name"),
        (["--domain", "mesh"], "is not a mesh domain"),
        (["--address", "localhost"], "does not appear to be an IPv4 or IPv6 address"),
        (["--gateways", "127.0.0.1:0"], "no port from 1 to 65535"),
        (["--peer-gateways", "west"], "--peer-gateways wants CLUSTER=ADDRESS"),
        (["--etcd-key", "key.pem"], "need --etcd-ca"),
        (["--stale-after", "1s"], "--stale-after is at least 2s"),
        (["--gone-after", "4s"], "--gone-after is longer than --stale-after"),
        (["--gone-after", "soon"], "or never"),
        (["--labels", "tier"], "is not label=value"),
        (["--labels", "tier=a,tier=b"], "tier is there twice"),
        (["--labels", "isthmus.dev/network=a"], "follows from what this cluster is"),
    ],
)
def test_wrong_options_of_control_are_wrong_usage(arguments: list[str], message: str) -> None:
    right = {
        "--cluster": "east",
        "--domain": "mesh.test",
        "--region": "eu",
        "--etcd": "http://127.0.0.1:1",
        "--data": "unused",
        "--address": "127.0.0.1",
    }
    options = [word for pair in (right | dict([arguments])).items() for word in pair]
    result = CliRunner().invoke(isthmus, ["control", *options])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


def test_control_reads_its_options_from_the_environment_too(tmp_path: Path) -> None:
    environment = {
        "ISTHMUS_CLUSTER": "east",
        "ISTHMUS_DOMAIN": "mesh",
        "ISTHMUS_REGION": "eu",
        "ISTHMUS_ETCD": "http://127.0.0.1:1",
        "ISTHMUS_DATA": str(tmp_path),
        "ISTHMUS_ADDRESS": "127.0.0.1",
    }
    result = CliRunner().invoke(isthmus, ["control"], env=environment)
    assert "'mesh' is not a mesh domain" in result.output


def test_gateways_are_read_with_and_without_ports() -> None:
    from deploy.cli.control import parse_gateways, parse_peer_gateways

    assert [str(one.port) for one in parse_gateways("10.0.0.1, 10.0.0.2:443")] == ["15443", "443"]
    assert parse_gateways("[fd00::1]:443,fd00::2")[0].address == "fd00::1"
    assert parse_gateways("fd00::2")[0].port == 15443
    assert parse_peer_gateways("west=10.0.0.1")[0] == "west"


def test_what_is_shown_is_text_json_or_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "cart", "ports": [80]}
    for output, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        show(value, output, lambda: "never rendered")
        assert read(capsys.readouterr().out) == value
    show(value, "table", lambda: table(["NAME", "WHY"], [("cart", "field spec.ports[0].port")]))
    assert capsys.readouterr().out.split() == ["NAME", "WHY", "cart", "field", "spec.ports[0].port"]


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "\x1b]0;x\x07", "[/red]", r"\[/red]", "[bold]x", "a\rb", "\x9b2J", "\u202ecart"]
)
def test_what_others_wrote_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str], text: str) -> None:
    show("", "table", lambda: [table(["WHY"], [(text,)]), text])
    shown = capsys.readouterr().out
    assert all(one.isprintable() or one == "\n" for one in shown)
    assert shown.split() == ["WHY"] + 2 * [text if text.isprintable() else repr(text)[1:-1]]


def test_what_belongs_to_one_cluster_is_not_done_in_the_first_that_is_known(tmp_path: Path) -> None:
    east, west = Context("http://127.0.0.1:1", ""), Context("http://127.0.0.1:2", "")
    with pytest.raises(CommandFailed, match="which cluster") as refusal:
        Targets(lambda: {"east": east, "west": west}, "").only()
    assert "east, west" in refusal.value.hint
    for targets in (Targets(lambda: {"east": east, "west": west}, "west"), Targets(lambda: {"west": west}, "")):
        assert isinstance(targets.only(), AdminClient)


def test_a_contexts_file_names_clusters_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "contexts.json"
    file.write_text('{"east": {"admin": "http://127.0.0.1:1"}, "west": {"admin": "http://127.0.0.1:2"}}')
    targets = Targets(lambda: read_contexts(file), "")
    assert list(targets.all()) == ["east", "west"]
    with pytest.raises(Exception, match="no cluster 'south'"):
        targets.client("south")


def test_labels_and_thresholds_of_a_cluster() -> None:
    from deploy.cli.control import parse_gone_after, parse_labels

    assert parse_labels("tier=gold, a.b/c=") == (("a.b/c", ""), ("tier", "gold"))
    assert parse_labels("") == ()
    assert parse_gone_after("never", stale_after=timedelta(seconds=4)) is None
    assert parse_gone_after("1.5h", stale_after=timedelta(seconds=4)) == timedelta(minutes=90)
