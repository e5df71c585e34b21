"""Readiness of workloads, as the control plane reads it: Pod objects in files."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from deploy.lab.addresses import Instance
from deploy.lab.kubelet import Kubelet, answers
from deploy.lab.plan import Cluster, Workload, read_plan
from tests.support.serving import serve_tcp
from tests.support.waiting import eventually

ADDRESS = "127.106.3.60"
FILE = """\
clusters:
  - name: east
    region: eu
    cloud: one
    zones: [a, b]
    workloads:
      - name: cart
        namespace: shop
        serviceAccount: cart
        labels: {app: cart, tier: front}
        port: 8080
        command: none
        readiness: READINESS
        replicas: {b: 1}
        uses:
          - {service: cache.shop, port: 6379}
"""


def instance(readiness: str) -> Instance:
    [cluster] = read_plan(FILE.replace("READINESS", readiness), "lab.yaml").clusters
    return Instance(cluster=cluster, workload=cluster.workloads[0], number=1, address=ADDRESS)


@asynccontextmanager
async def serving(answer: bytes) -> AsyncIterator[None]:
    """A program that says `answer` to everybody and closes."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async with serve_tcp(speak, ADDRESS, 8080):
        yield


class Done(Exception):
    """Leaves the group that runs the kubelet."""


def ready(file: Path) -> str:
    return str(yaml.safe_load(file.read_text())["status"]["conditions"][0]["status"])


async def test_a_pod_follows_its_program(tmp_path: Path) -> None:
    alive = {"app": False}
    kubelet = Kubelet({"app": instance("{}")}, {"east": tmp_path}, alive.__getitem__)
    kubelet.write_all()
    file = tmp_path / "shop.cart-1.yaml"
    assert yaml.safe_load(file.read_text()) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "cart-1",
            "namespace": "shop",
            "labels": {
                "app": "cart",
                "tier": "front",
                "topology.kubernetes.io/region": "eu",
                "topology.kubernetes.io/zone": "b",
                "isthmus.dev/cloud": "one",
            },
            "annotations": {"isthmus.dev/tcp-uses": "cache.shop:6379@6379"},
        },
        "spec": {"serviceAccountName": "cart", "containers": [{"name": "cart", "ports": [{"containerPort": 8080}]}]},
        "status": {"podIP": ADDRESS, "conditions": [{"type": "Ready", "status": "False"}]},
    }
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(kubelet.run())
            alive["app"] = True
            async with serving(b""):
                await eventually(lambda: ready(file) == "True", "a program that listens is ready")
                assert kubelet.is_ready("app")
            await eventually(lambda: ready(file) == "False", "one that does not listen any more is not")
            async with serving(b""):
                await eventually(lambda: ready(file) == "True", "it is ready again")
                alive["app"] = False  # a program whose process is gone is not ready, whoever answers at its address
                kubelet.wake("app")
                await eventually(lambda: ready(file) == "False", "a dead one is not ready")
            raise Done
    except* Done:
        pass
    left = await asyncio.to_thread(lambda: [each.name for each in tmp_path.iterdir()])
    assert left == [file.name]


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.0 302 Found\r\n\r\n", True),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"hello\r\n", False),
        (b"", False),
        (b"x" * 100_000, False),
    ],
)
async def test_an_http_probe_wants_a_good_status(answer: bytes, good: bool) -> None:
    async with serving(answer):
        assert await answers(instance("{httpGet: {path: /healthz}}")) is good
        assert await answers(instance("{}"))


async def test_nobody_there_is_not_ready() -> None:
    assert not await answers(instance("{httpGet: {}}"))
    assert not await answers(instance("{}"))


def test_a_workload_and_its_cluster_are_what_the_lab_file_says() -> None:
    made = instance("{}")
    assert isinstance(made.cluster, Cluster)
    assert isinstance(made.workload, Workload)
    assert (made.zone, made.pod) == ("b", "cart-1")
