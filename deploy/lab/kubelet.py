"""What a kubelet does for a cluster, done for the lab: watches workloads and writes them down as Kubernetes Pods.

One Pod object per instance, in one file each, in a folder that the cluster's control plane watches like any manifests.
A pod is Ready while its app's process lives and answers its probe; the sidecar has no say.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import yaml

from deploy.lab.addresses import Instance
from deploy.lab.state import write_atomically

PERIOD = timedelta(milliseconds=500)
_ANSWER = timedelta(seconds=1)  # Kubernetes' default timeoutSeconds
_FAILURES = 3  # Kubernetes' default failureThreshold: of a process that lives and does not answer
_EAGER_PERIOD = timedelta(milliseconds=50)
_EAGER = 200  # looks at a starting program before it counts as slow and is asked at the usual pace


def pod_object(instance: Instance, *, ready: bool) -> dict[str, object]:
    """Returns the Kubernetes Pod of an instance. Pure."""
    workload, cluster = instance.workload, instance.cluster
    labels = dict(workload.labels) | {
        "topology.kubernetes.io/region": cluster.region,
        "topology.kubernetes.io/zone": instance.zone,
    }
    if cluster.cloud:
        labels["isthmus.dev/cloud"] = cluster.cloud
    metadata: dict[str, object] = {"name": instance.pod, "namespace": workload.namespace, "labels": labels}
    if workload.uses:
        uses = ",".join(f"{use.host}:{use.port}@{use.listen_port}" for use in workload.uses)
        metadata["annotations"] = {"isthmus.dev/tcp-uses": uses}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "serviceAccountName": workload.account,
            "containers": [{"name": workload.name, "ports": [{"containerPort": workload.port}]}],
        },
        "status": {
            "podIP": instance.address,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


class Kubelet:
    """Watches the workload instances of a lab. They are known here by the names of their apps' processes."""

    def __init__(
        self, instances: Mapping[str, Instance], folders: Mapping[str, Path], is_alive: Callable[[str], bool]
    ) -> None:
        """`folders` says by cluster where Pod files go; `is_alive` whether an app's process lives."""
        self._instances = instances
        self._folders = folders
        self._is_alive = is_alive
        self._ready: set[str] = set()
        self._wake = {name: asyncio.Event() for name in instances}

    def write_all(self) -> None:
        """Writes all Pods as they are now: a control plane that starts then knows them. Blocks."""
        for name in self._instances:
            self._write(name)

    def is_ready(self, name: str) -> bool:
        """Says whether an instance is ready."""
        return name in self._ready

    def wake(self, name: str) -> None:
        """Makes the next look at an instance happen at once: its process has started or ended."""
        self._wake[name].set()

    async def run(self) -> None:
        """Looks at every instance until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name in self._instances:
                group.create_task(self._watch(name), name=f"watch {name}")

    async def _watch(self, name: str) -> None:
        failures = 0
        while True:
            self._wake[name].clear()
            was_ready = name in self._ready
            if not self._is_alive(name):
                is_ready = False
            elif await answers(self._instances[name]):
                failures, is_ready = 0, True
            else:
                failures += 1
                is_ready = was_ready and failures < _FAILURES
            if is_ready is not was_ready:
                self._ready ^= {name}
                await asyncio.to_thread(self._write, name)
            # a program that is starting is asked more often, so that a lab is up soon
            starting = self._is_alive(name) and not is_ready and failures < _EAGER
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((_EAGER_PERIOD if starting else PERIOD).total_seconds()):
                    await self._wake[name].wait()

    def _write(self, name: str) -> None:
        instance = self._instances[name]
        file = self._folders[instance.cluster.name] / f"{instance.workload.namespace}.{instance.pod}.yaml"
        write_atomically(file, yaml.safe_dump(pod_object(instance, ready=name in self._ready), sort_keys=False))


async def answers(instance: Instance) -> bool:
    """Asks an instance's probe once: a TCP connection, or an HTTP answer of 200 to 399."""
    path = instance.workload.probe_path
    try:
        async with asyncio.timeout(_ANSWER.total_seconds()):
            reader, writer = await asyncio.open_connection(instance.address, instance.workload.port)
            try:
                if not path:
                    return True
                host = f"{instance.address}:{instance.workload.port}"
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                match (await reader.readline()).split(maxsplit=2):
                    case [version, status, *_] if version.startswith(b"HTTP/1.") and status.isdigit():
                        return 200 <= int(status) < 400
                    case _:
                        return False
            finally:
                writer.close()
    except (OSError, ValueError, TimeoutError):  # ValueError: a line longer than the reader's limit
        return False
