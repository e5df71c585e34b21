"""One mesh for all faults, and the table of what they cost at the end of the run.

east    2 control planes, 1 etcd, 2 gateways; cart in zones a and b; a client
west    2 control planes, 3 etcds, 2 gateways; cart, and stock, which nobody else has; `ware` is stock by another name,
        of which east says drop-after=6s
south   believes others gone after 8 s; a client

`pytest -s tests/faults` prints the table. A row in which this machine stood still is repeated once.
"""

import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
import yaml

from deploy.lab.reports import LabReport
from deploy.lab.state import Folder
from tests.faults.broken_mesh import BrokenMesh
from tests.faults.pictures import Picture
from tests.faults.row import since
from tests.faults.standstill import repeated
from tests.faults.terminal import RecordProperty, record
from tests.support.mesh import Isthmus

DROP_AFTER = 6  # seconds of silence after which east's callers use no endpoint of `ware`
_BEFORE = pytest.StashKey[Picture]()
_WHOAMI = Path(__file__).parent.parent.parent / "deploy" / "examples" / "whoami.py"


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and "mesh" in item.fixturenames:
        item.obj = repeated(item.obj)


def service(name: str, *, selected: str = "") -> list[object]:
    """Returns the manifests of a service, of the workload of its name unless told otherwise, and of its export."""
    # with a time of its own an export is as old after the loss of etcd as before
    metadata = {"name": name, "namespace": "shop", "creationTimestamp": "2024-01-01T00:00:00Z"}
    ports = [{"port": 80, "targetPort": 8080, "appProtocol": "http"}]
    spec = {"selector": {"app": selected or name}, "ports": ports}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec},
        {"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": metadata},
    ]


def _import(name: str, annotations: dict[str, str]) -> object:
    return {
        "apiVersion": "multicluster.x-k8s.io/v1beta1",
        "kind": "ServiceImport",
        "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
        "spec": {"type": "ClusterSetIP", "ports": [{"port": 80, "appProtocol": "http"}]},
    }


def _workload(name: str, **more: object) -> dict[str, object]:
    return {
        "name": name,
        "namespace": "shop",
        "serviceAccount": name,
        "port": 8080,
        "command": [sys.executable, str(_WHOAMI)],
        "readiness": {"httpGet": {"path": "/"}},
        **more,
    }


def _write_files(folder: Path) -> Path:
    for cluster, names in (("east", ["cart"]), ("west", ["cart", "stock"]), ("south", [])):
        (folder / cluster).mkdir()
        objects = [each for name in names for each in service(name)]
        if cluster == "west":
            objects += service("ware", selected="stock")
        if cluster == "east":
            objects.append(_import("ware", {"isthmus.dev/when-stale": f"drop-after={DROP_AFTER}s"}))
        (folder / cluster / "services.yaml").write_text(yaml.safe_dump_all(objects))
    lab = {
        "clusters": [
            {
                "name": "east",
                "region": "eu",
                "zones": ["a", "b"],
                "cloud": "one",
                "controlReplicas": 2,
                "gateways": 2,
                "manifests": ["east"],
                "workloads": [_workload("cart", replicas=2), _workload("client")],
            },
            {
                "name": "west",
                "region": "us",
                "cloud": "one",
                "controlReplicas": 2,
                "etcdReplicas": 3,
                "gateways": 2,
                "manifests": ["west"],
                "workloads": [_workload("cart"), _workload("stock")],
            },
            {
                "name": "south",
                "region": "ap",
                "cloud": "two",
                "goneAfter": "8s",
                "manifests": ["south"],
                "workloads": [_workload("client")],
            },
        ],
    }
    file = folder / "lab.yaml"
    file.write_text(yaml.safe_dump(lab))
    return file


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--etcd-pause", type=float, default=8, help="For how many seconds etcd is paused.")


@pytest.fixture
def pause(request: pytest.FixtureRequest) -> float:
    """For how many seconds etcd is paused: `pytest tests/faults --etcd-pause 30`."""
    return float(request.config.getoption("--etcd-pause", 8))


@pytest.fixture(scope="package")
def _lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Folder, LabReport]]:
    file = _write_files(tmp_path_factory.mktemp("faults"))
    isthmus = Isthmus(tmp_path_factory.mktemp("home"), "faults")
    isthmus.run("lab", "up", str(file), "--detach", "--name", isthmus.name, seconds=180)
    try:
        report = isthmus.run("lab", "status", "--name", isthmus.name, "-o", "json").stdout
        yield Folder(isthmus.name, isthmus.home / "labs" / isthmus.name), msgspec.json.decode(report, type=LabReport)
    finally:
        isthmus.run("lab", "down", "--name", isthmus.name, seconds=60)


@pytest.fixture
async def mesh(_lab: tuple[Folder, LabReport], record_property: RecordProperty) -> AsyncIterator[BrokenMesh]:
    """The mesh; each row leaves it whole."""
    folder, report = _lab
    manifests = Path(report.file).parent
    async with BrokenMesh(folder, report, manifests, partial(record, record_property)) as mesh:
        yield mesh


@pytest.fixture
async def before(mesh: BrokenMesh, request: pytest.FixtureRequest) -> Picture:
    """The picture of the mesh before its first fault."""
    stash = request.config.stash
    if _BEFORE not in stash:
        await since(0.0, mesh.check_whole)
        stash[_BEFORE] = await mesh.picture()
    return stash[_BEFORE]
