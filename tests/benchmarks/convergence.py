"""How fast a change in east is acknowledged by west's proxies, in a lab of three clusters, with replicas lost in both.

It is always the leader that is killed, in east and in west, and another one has taken over when changes go on.
The lab is driven as a user drives it: its command line, a manifest that changes, and the metrics of west's control
planes, whose histogram `isthmus_convergence_seconds` says what is asked.
"""

import json
import re
import time
import urllib.request
from bisect import bisect_left
from collections.abc import Callable, Set
from itertools import accumulate
from pathlib import Path

import msgspec
import yaml

from tests.support.mesh import Isthmus, eventually

_METRICS_PORT = 15014
_BUCKET = re.compile(r"^isthmus_convergence_seconds_bucket\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_REPLICAS = 3
_ALL = tuple(f"control-{number}" for number in range(1, _REPLICAS + 1))
_PROXIES = 2  # of each cluster: a gateway and a sidecar
_START_LIMIT = 180  # seconds
_STEP_LIMIT = 60  # seconds
_PACE = 0.15  # seconds between two changes: each is seen by itself
_LAST = 3.0  # seconds for the last change to arrive
_CLUSTERS = (("east", "eu"), ("west", "us"), ("south", "ap"))


class Loss(msgspec.Struct, frozen=True):
    """Convergence while so many replicas are dead, in east and in west. In seconds, interpolated within a bucket.

    `acknowledged` counts how often some proxy had taken all that had changed; changes may come together.
    """

    killed: int
    changes: int
    acknowledged: int
    p50: float
    p99: float


def measure(folder: Path, *, changes: int, say: Callable[[str], None]) -> list[Loss]:
    """Starts a lab, changes endpoints in east with 0, 1 and 2 leaders killed, and ends the lab."""
    isthmus = Isthmus(folder / "home", "bench")
    file = _write_lab(folder)
    try:
        say("the lab starts")
        isthmus.run("lab", "up", str(file), "--name", "bench", "--detach", seconds=_START_LIMIT)
        dead: dict[str, set[str]] = {"east": set(), "west": set()}
        found = []
        for killed in range(_REPLICAS):
            if killed:
                for cluster, gone in dead.items():
                    gone.add(_kill_leader(isthmus, cluster, gone, say))
            eventually(lambda: all(_is_in_step(isthmus, cluster, gone) for cluster, gone in dead.items()), _STEP_LIMIT)
            found.append(_with_loss(isthmus, folder, dead["west"], changes, say))
        return found
    finally:
        isthmus.run("lab", "down", "--name", "bench", code=None)


def quantile(buckets: dict[float, float], part: float) -> float:
    """Returns a quantile of a histogram (bound -> count of its own bucket); of the last bucket its lower bound."""
    bounds = sorted(buckets)
    totals = list(accumulate(buckets[bound] for bound in bounds))
    if not totals or not totals[-1]:
        return 0.0
    place = bisect_left(totals, part * totals[-1])
    below = totals[place - 1] if place else 0.0
    low, high = bounds[place - 1] if place else 0.0, bounds[place]
    if high == float("inf"):
        return low
    return low + (high - low) * (part * totals[-1] - below) / buckets[high]


def _with_loss(isthmus: Isthmus, folder: Path, dead: Set[str], changes: int, say: Callable[[str], None]) -> Loss:
    say(f"{changes} changes with {len(dead)} of {_REPLICAS} replicas dead in east and in west")
    alive = [isthmus.address(f"west/{replica}") for replica in _ALL if replica not in dead]
    before = _histogram(alive)
    for number in range(changes):
        _change(folder, number)
        time.sleep(_PACE)
    time.sleep(_LAST)
    after = _histogram(alive)
    buckets = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    return Loss(
        killed=len(dead),
        changes=changes,
        acknowledged=round(sum(buckets.values())),
        p50=quantile(buckets, 0.5),
        p99=quantile(buckets, 0.99),
    )


def _kill_leader(isthmus: Isthmus, cluster: str, dead: Set[str], say: Callable[[str], None]) -> str:
    """Kills the replica that leads, and returns its name once another one leads."""
    leader = str(eventually(lambda: isthmus.ask(cluster, "status")["leader"], _STEP_LIMIT))
    assert leader not in dead, f"{leader} of {cluster} is dead, and said to lead"
    began = time.monotonic()
    isthmus.lab("kill", f"{cluster}/{leader}")
    eventually(lambda: isthmus.ask(cluster, "status")["leader"] not in {leader, ""}, _STEP_LIMIT)
    say(f"{leader} led {cluster} and was killed; another one led after {time.monotonic() - began:.1f} s")
    return leader


def _is_in_step(isthmus: Isthmus, cluster: str, dead: Set[str]) -> bool:
    """Says whether a living replica leads, hears the others, and all proxies are there."""
    if isthmus.ask(cluster, "status")["leader"] in {"", *dead}:
        return False
    states = {one["name"]: one["state"] for one in isthmus.ask(cluster, "clusters")}
    if any(states.get(other) != "live" for other, _ in _CLUSTERS if other != cluster):
        return False
    return len(isthmus.ask(cluster, "proxies")) >= _PROXIES


def _histogram(addresses: list[str]) -> dict[float, float]:
    """Returns the histogram of remote changes, of several control planes together: bound -> count of its own bucket."""
    total: dict[float, float] = {}
    for address in addresses:
        with urllib.request.urlopen(f"http://{address}:{_METRICS_PORT}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        upto: dict[float, float] = {}
        for labels, count in _BUCKET.findall(text):
            found = dict(_LABEL.findall(labels))
            if found.get("scope") == "remote":
                upto[float(found["le"])] = float(count)
        last = 0.0
        for bound in sorted(upto):
            total[bound] = total.get(bound, 0.0) + upto[bound] - last
            last = upto[bound]
    return total


def _change(folder: Path, number: int) -> None:
    """Lets an endpoint of east go, or come back."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "cart-more", "namespace": "shop", "labels": {"app": "cart"}},
        "spec": {"serviceAccountName": "cart", "containers": [{"name": "cart", "ports": [{"containerPort": 8080}]}]},
        "status": {"podIP": "127.108.0.9", "conditions": [{"type": "Ready", "status": str(number % 2 == 0)}]},
    }
    whole = folder / "east" / ".more.json"
    whole.write_text(json.dumps(pod))
    whole.rename(folder / "east" / "more.yaml")


def _write_lab(folder: Path) -> Path:
    metadata = {"name": "cart", "namespace": "shop"}
    port = {"name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http"}
    objects = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": {"app": "cart"}, "ports": [port]},
        },
        {"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": metadata},
    ]
    workload = {
        "name": "cart",
        "namespace": "shop",
        "serviceAccount": "cart",
        "labels": {"app": "cart"},
        "port": 8080,
        "command": "python -m http.server 8080 --bind {address}",
    }
    clusters = []
    for name, region in _CLUSTERS:
        (folder / name).mkdir()
        (folder / name / "services.yaml").write_text(yaml.safe_dump_all(objects))
        clusters.append(
            {
                "name": name,
                "region": region,
                "controlReplicas": _REPLICAS,
                "manifests": [name],
                "workloads": [workload],
            }
        )
    file = folder / "lab.yaml"
    file.write_text(yaml.safe_dump({"domain": "mesh.test", "clusters": clusters}))
    return file
