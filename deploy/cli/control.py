"""`isthmus control`: runs the control plane of one cluster. Every option is also an environment variable ISTHMUS_*."""

import asyncio
import signal
from collections.abc import Iterable
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType

import click
import uvloop

from deploy.cli.spans import Span
from deploy.control.options import SHORTEST_STREAM, ControlOptions
from deploy.control.process import run
from deploy.failures import CommandFailed
from deploy.logs import start_logging
from federation.etcd import EtcdTls
from federation.model import GATEWAY_PORT, ClusterSettings, GatewayAddress, NetworkName, Thresholds
from federation.peering.freshness import SHORTEST_STALE
from federation.sources.annotations import IMPLIED_LABELS, parse_label
from federation.spans import InvalidSpan, parse_span
from trust.issuance import MINIMUM_LEAF_LIFETIME
from trust.spiffe import ClusterName, InvalidName, parse_cluster, parse_domain

NEVER = "never"
MOST_LABELS = 64
"""Of a member: what peers take (`peering.exports`)."""


@click.command(context_settings={"auto_envvar_prefix": "ISTHMUS", "show_default": True})
@click.option("--cluster", required=True, help="Name of this cluster: one DNS label.")
@click.option("--domain", required=True, help="Name of the mesh, as given to `isthmus trust init`.")
@click.option("--region", required=True, help="Region that this cluster is in.")
@click.option("--cloud", default="", help="Cloud that this cluster is in.")
@click.option("--zones", default="", help="Zones of this cluster, separated by commas.")
@click.option("--network", default="", help="Clusters of one network reach each other's pods directly.  [its name]")
@click.option(
    "--labels",
    default="",
    metavar="LABEL=VALUE,...",
    help="Labels of this cluster, by which exports of others may select it: tier=gold,...",
)
@click.option("--stale-after", type=Span(), default="4s", help="Silence after which a peer's endpoints come last.")
@click.option(
    "--gone-after",
    default="24h",
    metavar="SPAN|never",
    help="Silence after which a peer's endpoints are used no more.",
)
@click.option("--etcd", required=True, help="URLs of this cluster's etcd, separated by commas.")
@click.option("--etcd-ca", type=click.Path(dir_okay=False, path_type=Path), help="PEM file: who signed etcd.")
@click.option("--etcd-cert", type=click.Path(dir_okay=False, path_type=Path), help="PEM file: who we are to etcd.")
@click.option("--etcd-key", type=click.Path(dir_okay=False, path_type=Path), help="PEM file: key of --etcd-cert.")
@click.option(
    "--data",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the CA key and the admin token, shared by the replicas of one cluster.",
)
@click.option(
    "--manifests",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File or folder of Kubernetes YAML; may be given several times.",
)
@click.option("--address", required=True, help="IP address of the ADS, federation and admin ports.")
@click.option("--gateways", default="", help="Where others reach our gateways: ADDRESS[:PORT],...")
@click.option(
    "--peer-gateways",
    multiple=True,
    metavar="CLUSTER=ADDRESS[:PORT],...",
    help="Gateways of a peer as reached from here, instead of those that it announces.",
)
@click.option("--control-addresses", default="", help="Addresses of all replicas, separated by commas.  [--address]")
@click.option("--leaf-lifetime", type=Span(), default="24h", help="Lifetime of the workloads' certificates.")
@click.option("--stream-max-age", type=Span(), default="30m", help="After which a proxy shows its token again.")
@click.option(
    "--ca-keys",
    default="",
    metavar="URI",
    help="Where the CA keys are: a token's `pkcs11:token=...?module-path=...&pin-source=file:...`.  [files in --data]",
)
@click.option(
    "--ca-passphrase-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the passphrase that encrypts the CA keys, or of the token's PIN.",
)
@click.option("--name", default="control-1", help="Name of this replica, unlike those of the others.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text")
def control(
    *,
    cluster: str,
    domain: str,
    region: str,
    cloud: str,
    zones: str,
    network: str,
    labels: str,
    stale_after: timedelta,
    gone_after: str,
    etcd: str,
    etcd_ca: Path | None,
    etcd_cert: Path | None,
    etcd_key: Path | None,
    data: Path,
    manifests: tuple[Path, ...],
    address: str,
    gateways: str,
    peer_gateways: tuple[str, ...],
    control_addresses: str,
    leaf_lifetime: timedelta,
    stream_max_age: timedelta,
    ca_keys: str,
    ca_passphrase_file: Path | None,
    name: str,
    log_format: str,
) -> None:
    """Run the control plane of one cluster: its picture of the mesh, its CA, the configuration of its proxies.

    Until the cluster has joined a mesh (`isthmus join`) only the admin API answers. Ends on SIGTERM.
    """
    if leaf_lifetime < MINIMUM_LEAF_LIFETIME:
        raise click.UsageError(f"--leaf-lifetime is at least {MINIMUM_LEAF_LIFETIME.total_seconds():.0f}s")
    if stream_max_age < SHORTEST_STREAM:
        raise click.UsageError(f"--stream-max-age is at least {SHORTEST_STREAM.total_seconds():.0f}s")
    if etcd_ca is None and (etcd_cert or etcd_key):
        raise click.UsageError("--etcd-cert and --etcd-key need --etcd-ca")
    try:
        settings = ClusterSettings(
            name=parse_cluster(cluster),
            domain=parse_domain(domain),
            network=NetworkName(network or cluster),
            region=region,
            cloud=cloud,
            zones=tuple(_listed(zones)),
            gateways=parse_gateways(gateways),
            peer_gateways=MappingProxyType(dict(parse_peer_gateways(text) for text in peer_gateways)),
            labels=parse_labels(labels),
            thresholds=Thresholds(stale_after, parse_gone_after(gone_after, stale_after=stale_after)),
        )
        _check_addresses([address, *_listed(control_addresses)])
    except (InvalidName, ValueError) as error:
        raise click.UsageError(str(error)) from error
    options = ControlOptions(
        settings=settings,
        replica=name,
        etcd=tuple(_listed(etcd)),
        etcd_tls=EtcdTls(authority=etcd_ca, certificate=etcd_cert, key=etcd_key) if etcd_ca else None,
        data=data,
        manifests=manifests,
        address=address,
        control_addresses=tuple(_listed(control_addresses)) or (address,),
        leaf_lifetime=leaf_lifetime,
        stream_max_age=stream_max_age,
        ca_keys=ca_keys,
        ca_passphrase=_read_passphrase(ca_passphrase_file),
    )
    start_logging(log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_told(options))


async def _until_told(options: ControlOptions) -> None:
    stop = asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, stop.set)
    await run(options, stop)


def parse_gateways(text: str) -> tuple[GatewayAddress, ...]:
    """Parses `ADDRESS[:PORT],...`; raises ValueError. An IPv6 address with a port stands in brackets."""
    return tuple(_gateway(one) for one in _listed(text))


def parse_peer_gateways(text: str) -> tuple[ClusterName, tuple[GatewayAddress, ...]]:
    """Parses `CLUSTER=ADDRESS[:PORT],...`; raises ValueError."""
    name, equals, addresses = text.partition("=")
    if not equals or not addresses:
        raise ValueError(f"--peer-gateways wants CLUSTER=ADDRESS[:PORT],... and not {text!r}")
    return parse_cluster(name), parse_gateways(addresses)


def parse_labels(text: str) -> tuple[tuple[str, str], ...]:
    """Parses `LABEL=VALUE,...` and returns them sorted; raises ValueError."""
    labels: dict[str, str] = {}
    for one in _listed(text):
        label, value = parse_label(one)
        if label in IMPLIED_LABELS:
            raise ValueError(f"--labels: {label} follows from what this cluster is, and cannot be given")
        if label in labels:
            raise ValueError(f"--labels: {label} is there twice")
        labels[label] = value
    if len(labels) > MOST_LABELS:
        raise ValueError(f"--labels: more than {MOST_LABELS} are refused by the peers")
    return tuple(sorted(labels.items()))


def parse_gone_after(text: str, *, stale_after: timedelta) -> timedelta | None:
    """Parses the second threshold, None for `never`; raises ValueError, also when the two do not go together."""
    if stale_after < SHORTEST_STALE:
        least = SHORTEST_STALE.total_seconds()
        raise ValueError(f"--stale-after is at least {least:g}s: a peer that lives is heard once a second")
    if text.strip().lower() == NEVER:
        return None
    try:
        gone_after = parse_span(text)
    except InvalidSpan as error:
        raise ValueError(f"--gone-after: {error}; or {NEVER}") from error
    if gone_after <= stale_after:
        raise ValueError("--gone-after is longer than --stale-after: a peer is stale first, and then gone")
    return gone_after


def _gateway(text: str) -> GatewayAddress:
    host, colon, port = text.rpartition(":") if text.count(":") == 1 or "]:" in text else (text, "", "")
    host = host.strip("[]")
    if colon and not (port.isdecimal() and 0 < int(port) < 65_536):
        raise ValueError(f"{text!r} has no port from 1 to 65535 behind the colon")
    _check_addresses([host])
    return GatewayAddress(host, int(port) if colon else GATEWAY_PORT)


def _check_addresses(addresses: Iterable[str]) -> None:
    for address in addresses:
        ip_address(address)  # raises ValueError


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _read_passphrase(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}", "check --ca-passphrase-file") from error
