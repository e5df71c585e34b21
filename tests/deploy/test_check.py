"""`isthmus check`: findings as a table and as JSON, and an exit code that scripts can use."""

import json
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from deploy.cli.check import check

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: cart
  namespace: shop
spec:
  selector:
    app: cart
  ports:
    - name: http
      port: 80
"""
EXPORT = """\
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: cart, namespace: shop}
"""


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(check, [str(argument) for argument in arguments], input=stdin)


def test_sound_manifests_exit_with_0(tmp_path: Path) -> None:
    (tmp_path / "cart.yaml").write_text(SERVICE)
    (tmp_path / "export.yaml").write_text(EXPORT)
    result = run(tmp_path)
    assert result.exit_code == 0
    assert result.output == "2 objects in 2 files: 0 errors, 0 warnings\n"


def test_a_broken_object_exits_with_1_and_shows_file_line_object_field_message_and_hint(tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    path.write_text(SERVICE.replace("port: 80", "prot: 80"))
    result = run(path)
    assert result.exit_code == 1
    header, finding, hint, *_ = result.output.splitlines()
    assert header.split() == ["FILE:LINE", "SEVERITY", "OBJECT", "WHAT", "IS", "WRONG"]
    assert finding.split(maxsplit=2)[:2] == [f"{path}:11", "error"]
    assert finding.rstrip().endswith("Service shop/cart  spec.ports[0].prot: `port` is missing")
    assert hint.strip() == "hint: is `prot` a misspelling of it?"
    result = run(path, "-o", "json")
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert (report["files"], report["objects"], report["errors"], report["warnings"]) == (1, 1, 1, 0)
    assert report["findings"] == [
        {
            "where": str(path),
            "line": 11,
            "object": "Service shop/cart",
            "field": "spec.ports[0].prot",
            "message": "`port` is missing",
            "hint": "is `prot` a misspelling of it?",
            "severity": "error",
        }
    ]
    assert yaml.safe_load(run(path, "-o", "yaml").output) == report


def test_the_table_shows_what_markup_would_swallow(tmp_path: Path) -> None:
    with chdir(tmp_path):
        Path("c.yaml").write_text(SERVICE.replace("port: 80", "prot: 80"))
        output = run("c.yaml").output
    assert "c.yaml:11" in output
    assert "spec.ports[0].prot" in output
    assert "1 object in 1 file: 1 error, 0 warnings" in output


def test_warnings_alone_exit_with_0(tmp_path: Path) -> None:
    with chdir(tmp_path):
        Path("export.yaml").write_text(EXPORT)
        result = run("export.yaml")
    assert result.exit_code == 0
    assert "1 object in 1 file: 0 errors, 1 warning" in result.output
    assert "nothing is exported" in result.output


def test_objects_are_checked_together_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "cart.yaml").write_text(SERVICE)
    result = run(tmp_path, "-", stdin=EXPORT)
    assert (result.exit_code, result.output) == (0, "2 objects in 2 files: 0 errors, 0 warnings\n")
    result = run(tmp_path, "-", "-o", "json", stdin=SERVICE)
    assert result.exit_code == 1
    (finding,) = json.loads(result.output)["findings"]
    assert "Service shop/cart is also in" in finding["message"]


@pytest.mark.parametrize("name", ["missing.yaml", "missing/"])
def test_what_does_not_exist_is_an_error(tmp_path: Path, name: str) -> None:
    result = run(tmp_path / name, "-o", "json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.output)["findings"]
    assert "No such file" in finding["message"]


def test_no_arguments_is_wrong_usage() -> None:
    assert run().exit_code == 2
