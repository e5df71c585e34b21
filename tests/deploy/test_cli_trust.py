"""`isthmus trust` as people and programs call it: bundles, status and rotations against real control planes."""

import asyncio
import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.cli.main import isthmus
from tests.support import control
from trust.custody import FileCustody
from trust.root import Root


def invoke(*words: str) -> Result:
    return CliRunner().invoke(isthmus, list(words), prog_name="isthmus")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "root"
    made = invoke("trust", "init", "--domain", "mesh.test", "--out", str(directory))
    assert made.exit_code == 0, made.output
    return directory


def opened(directory: Path) -> Root:
    return Root.open(directory, custody=FileCustody(directory), now=datetime.now(UTC))


def check_spiffe_bundle(document: Any) -> list[x509.Certificate]:
    """Holds a document to SPIFFE Trust Domain and Bundle, sections 4.1 and 4.2, and X509-SVID, section 6.2."""
    assert document.keys() <= {"keys", "spiffe_sequence", "spiffe_refresh_hint"}
    assert type(document["spiffe_sequence"]) is int
    assert type(document["spiffe_refresh_hint"]) is int
    anchors = []
    for key in document["keys"]:
        assert key["use"] == "x509-svid"
        assert key["kty"] == "EC"
        assert "kid" not in key
        [encoded] = key["x5c"]  # exactly one, and standard base64 (RFC 7517, section 4.7)
        anchor = x509.load_der_x509_certificate(base64.b64decode(encoded, validate=True))
        assert anchor.issuer == anchor.subject
        assert anchor.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        public = anchor.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        numbers = {"x": public.public_numbers().x, "y": public.public_numbers().y}
        for name, number in numbers.items():
            octets = base64.urlsafe_b64decode(key[name] + "=" * (-len(key[name]) % 4))
            assert len(octets) == 32, "RFC 7518, section 6.2.1.2: the full size of a coordinate"
            assert int.from_bytes(octets, "big") == number
        anchors.append(anchor)
    return anchors


def test_a_bundle_is_printed_as_pem_for_tls_libraries(root: Path) -> None:
    printed = invoke("trust", "bundle", "--root", str(root))
    assert printed.exit_code == 0, printed.output
    [anchor] = x509.load_pem_x509_certificates(printed.stdout.encode())
    assert anchor == x509.load_pem_x509_certificate(opened(root).bundle.roots[0].encode())


def test_a_bundle_is_printed_as_a_spiffe_document(root: Path) -> None:
    [anchor] = check_spiffe_bundle(json.loads(invoke("trust", "bundle", "--root", str(root), "-o", "spiffe").stdout))
    opened(root).announce(now=datetime.now(UTC))
    document = json.loads(invoke("trust", "bundle", "--root", str(root), "-o", "spiffe").stdout)
    assert document["spiffe_sequence"] == 2
    first, second = check_spiffe_bundle(document)
    assert first == anchor != second


def test_a_bundle_of_nowhere_is_an_error(tmp_path: Path) -> None:
    there_is_none = invoke("trust", "bundle", "--root", str(tmp_path / "none"))
    assert there_is_none.exit_code == 1
    nobody = invoke("--admin", "http://127.107.0.9:1", "trust", "bundle")
    assert nobody.exit_code == 1
    assert "no control plane answered" in str(getattr(nobody.exception, "message", ""))


@pytest.mark.parametrize(
    "words",
    [
        ("trust", "rotate", "root"),
        ("trust", "rotate", "intermediate", "--root", "root"),
        ("trust", "rotate", "root", "--root", "root", "--wait", "soon"),
        ("trust", "status", "--deliver"),
        ("trust", "bundle", "-o", "json"),
        ("trust", "rotate", "leaf"),
    ],
)
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    assert invoke(*words).exit_code == 2


def test_a_rotation_without_members_says_what_comes_first(root: Path, tmp_path: Path) -> None:
    contexts = tmp_path / "contexts.json"
    contexts.write_text('{"east": {"admin": "http://127.107.0.9:1"}}')
    ended = invoke("--contexts", str(contexts), "trust", "rotate", "root", "--root", str(root))
    assert ended.exit_code == 1
    assert "the root has no member yet" in str(getattr(ended.exception, "message", ""))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("isthmus rev", {"revoke"}),
        ("isthmus trust ro", {"rotate"}),
        ("isthmus trust rotate in", {"intermediate"}),
        ("isthmus revoke w", {"workload"}),
        ("isthmus trust bundle -o sp", {"spiffe"}),
    ],
)
def test_the_shell_completes_commands(words: str, expected: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    *before, last = words.split()[1:]
    completed = ShellComplete(isthmus, {}, "isthmus", "_ISTHMUS_COMPLETE").get_completions(before, last)
    assert {one.value for one in completed} == expected
    assert capsys.readouterr() == ("", ""), "what is printed would stand in the middle of somebody's line"


def test_the_shell_is_not_told_of_errors_while_it_completes() -> None:
    context = click.Context(isthmus, info_name="isthmus", resilient_parsing=True)
    assert isthmus.resolve_command(context, ["nothing"])[1] is None


class Commands:
    """The command line in this process, against some control planes."""

    def __init__(self, contexts: Path) -> None:
        self.contexts = contexts

    async def __call__(self, *words: str, code: int = 0) -> str:
        """Returns what a command printed, or of an error what it says and advises."""
        ran = await asyncio.to_thread(invoke, "--contexts", str(self.contexts), *words)
        refusal = f"{getattr(ran.exception, 'message', '')} {getattr(ran.exception, 'hint', '')}".strip()
        assert ran.exit_code == code, f"{words}\n{ran.output}\n{refusal}{ran.exception!r}"
        return refusal or ran.stdout

    async def json(self, *words: str, code: int = 0) -> Any:
        """Returns what a command answers to programs."""
        return json.loads(await self(*words, "-o", "json", code=code))


async def test_keys_rotate_and_are_looked_at_by_commands(root: Path, tmp_path: Path) -> None:
    async with control.start_control(tmp_path / "east", "east") as east:
        run = Commands(control.write_contexts(tmp_path / "contexts.json", east))

        async def status(*words: str) -> Any:
            return await run.json("trust", "status", *words)

        await run("join", "east", "--root", str(root))
        at_rest = await status()
        assert at_rest["stage"] == "idle"
        assert [one["generation"] for one in at_rest["authorities"]] == [1]

        rotated = await run("trust", "rotate", "intermediate", "east", "--root", str(root), "-o", "json")
        assert json.loads(rotated)["granted"] == ["east"]
        assert [one["generation"] for one in (await status())["authorities"]] == [2]

        await run("trust", "rotate", "root", "--root", str(root))
        after = await status("--root", str(root))
        assert [one["slot"] for one in after["roots"]] == ["signing"]
        assert after["roots"][0]["fingerprint"] != at_rest["roots"][0]["fingerprint"]
        newest = after["authorities"][0]
        assert (newest["generation"], newest["slot"], newest["root"]) == (3, "active", "signing")
        assert await run("trust", "bundle") == await run("trust", "bundle", "--root", str(root))
        warned = await run("trust", "status", "--warn-before", "9999d", code=1)
        assert "warning: the authority of east expires on" in warned
        handed = await status("--root", str(root), "--deliver")
        assert handed["silent"] == []

        cut = json.loads(await run("revoke", "workload", "shop/cart", "--root", str(root), "-o", "json"))
        assert [(one["cluster"], one["state"]) for one in cut["members"]] == [("east", "in-force")]
        await run("revoke", "workload", "shop/web", "--reason", "stolen")
        listed = json.loads(await run("revoke", "list", "-o", "json"))
        assert [(one["subject"], one["origin"]) for one in listed] == [("shop/cart", "root"), ("shop/web", "cluster")]
        assert "--root" in await run("revoke", "workload", "shop/cart", "--undo", code=1)
        await run("revoke", "workload", "shop/cart", "--undo", "--root", str(root))
        await run("revoke", "workload", "shop/web", "--undo")
        assert json.loads(await run("revoke", "list", "-o", "json")) == []

        assert "east is the only member" in await run("revoke", "east", "--root", str(root), code=1)
        assert "did you mean east?" in await run("revoke", "eats", "--root", str(root), code=1)
        assert "not revoked by the root" in await run("revoke", "east", "--undo", "--root", str(root), code=1)

        await east.kill()
        assert "no control plane answered" in await run("trust", "status", code=1)


async def test_a_member_that_is_away_is_named_and_gets_what_it_missed(root: Path, tmp_path: Path) -> None:
    """Two members that cannot hear each other: each is reached by the commands alone."""
    async with (
        control.start_control(tmp_path / "east", "east") as east,
        control.start_control(tmp_path / "west", "west") as west,
    ):
        run = Commands(control.write_contexts(tmp_path / "contexts.json", east, west))
        of_root = ("--root", str(root))
        for name in ("east", "west"):
            await run("join", name, *of_root)

        both = await run.json("revoke", "workload", "shop/web", "--wait", "60s")
        assert {one["cluster"]: one["state"] for one in both["members"]} == {"east": "in-force", "west": "in-force"}
        alone = await run.json("revoke", "west", "--reason", "stolen")
        assert [(one["cluster"], one["state"]) for one in alone["members"]] == [("east", "in-force")]
        assert [one["subject"] for one in await run.json("--cluster", "west", "revoke", "list")] == ["shop/web"]
        await run("revoke", "west", "--undo")
        itself = await run("--cluster", "west", "revoke", "west", "--yes", code=1)
        assert "no cluster revokes itself" in itself

        await west.kill()
        told = await run.json("revoke", "workload", "shop/cart", "--wait", "0s", code=1)
        assert {one["cluster"]: one["state"] for one in told["members"]} == {"east": "in-force", "west": "not-reached"}
        signed = await run.json("revoke", "workload", "shop/files", *of_root, "--wait", "0s")
        assert {one["cluster"]: one["state"] for one in signed["members"]} == {
            "east": "in-force",
            "west": "not-reached",
        }
        held = await run.json("trust", "rotate", "root", *of_root, "--wait", "1s", code=1)
        assert held["stage"] == "announced"
        assert [one["cluster"] for one in held["holdups"]] == ["west"]
        assert [one["cluster"] for one in held["notReached"]] == ["west"]
        forced = await run.json("trust", "rotate", "root", *of_root, "--wait", "1s", "--force", "--yes", code=1)
        assert (forced["forced"], forced["stage"], forced["granted"]) == (["announced"], "signing", ["east"])

        await west.start()
        done = await run.json("trust", "rotate", "root", *of_root, "--wait", "60s")
        assert (done["isDone"], done["granted"], done["caughtUp"]) == (True, ["west"], ["west"])
        status = await run.json("trust", "status", *of_root)
        assert status["roots"][0]["trustedBy"] == ["east", "west"]
        assert [one["subject"] for one in status["revoked"]] == ["shop/cart", "shop/files", "shop/web"]
        assert [one["inForce"] for one in status["revoked"]][1] == ["east", "west"]
