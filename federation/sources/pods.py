"""A Kubernetes Pod as a value of the model: where it runs, who it is, whether it is ready, what it depends on."""

import ipaddress
import re

from federation.model import MESH_PORT, OUTBOUND_PORT, PROXY_ADMIN_PORT, Locality, Pod, PodKey, TcpUse
from federation.sources.annotations import TCP_USES
from federation.sources.fields import Field
from trust.spiffe import ServiceAccount, is_dns_name

REGION_LABEL = "topology.kubernetes.io/region"
ZONE_LABEL = "topology.kubernetes.io/zone"
CLOUD_LABEL = "isthmus.dev/cloud"
TCP_USES_ANNOTATION = TCP_USES
"""Plain TCP dependencies: `host:port@listenPort`, comma separated."""

_DEFAULT_ACCOUNT = "default"
_USE = re.compile(r"(?P<host>[^:@\s]+):(?P<port>[0-9]{1,5})@(?P<listen>[0-9]{1,5})")
_OURS = frozenset({PROXY_ADMIN_PORT, OUTBOUND_PORT, MESH_PORT})
_FINISHED = frozenset({"Succeeded", "Failed"})
_SPEC_FIELDS = ("containers", "initContainers", "serviceAccountName", "serviceAccount", "ephemeralContainers")
_PORT_FIELDS = ("containerPort", "name", "protocol", "hostPort", "hostIP")


def read_pod(key: PodKey, field: Field) -> Pod | None:
    """Reads a Pod; None while it has no address, or when it has finished: nobody can call it."""
    spec = field["spec"]
    if not spec.require_mapping():
        return None
    spec.check_names(_SPEC_FIELDS)
    status = field["status"]
    labels = field["metadata"]["labels"].texts()
    account = spec["serviceAccountName"].text() or spec["serviceAccount"].text() or _DEFAULT_ACCOUNT
    if not is_dns_name(account):
        spec["serviceAccountName"].error(f"{account!r} is not the name of a service account")
    address = _address(status["podIP"])
    ports = _ports(spec)
    uses = _uses(field["metadata"]["annotations"][TCP_USES_ANNOTATION])
    is_leaving = field["metadata"]["deletionTimestamp"].is_given
    is_ready = _is_ready(status["conditions"]) and not is_leaving
    if not address or status["phase"].text() in _FINISHED:
        return None
    return Pod(
        key=key,
        address=address,
        account=ServiceAccount(account),
        locality=_locality(dict(labels)),
        ready=is_ready,
        labels=labels,
        ports=ports,
        uses=uses,
    )


def _address(field: Field) -> str:
    text = field.text()
    if not text:
        return ""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        field.error(f"{text!r} is not an IP address")
        return ""


def _locality(labels: dict[str, str]) -> Locality:
    return Locality(
        region=labels.get(REGION_LABEL, ""), zone=labels.get(ZONE_LABEL, ""), cloud=labels.get(CLOUD_LABEL, "")
    )


def _is_ready(conditions: Field) -> bool:
    return any(each["type"].text() == "Ready" and each["status"].text() == "True" for each in conditions.items())


def _ports(spec: Field) -> tuple[tuple[str, int], ...]:
    """Reads the named TCP ports of all containers; as in Kubernetes, the first of a name counts."""
    ports: dict[str, int] = {}
    # An init container with `restartPolicy: Always` runs beside the others and may serve too.
    for container in [*spec["containers"].items(), *spec["initContainers"].items()]:
        for entry in container["ports"].items():
            if not entry.require_mapping():
                continue
            entry.check_names(_PORT_FIELDS)
            if not entry["containerPort"].is_given:
                entry["containerPort"].missing()
            name, number = entry["name"].text(), entry["containerPort"].port()
            if name and number and entry["protocol"].text("TCP") == "TCP":
                ports.setdefault(name, number)
    return tuple(sorted(ports.items()))


def _uses(field: Field) -> tuple[TcpUse, ...]:
    """Reads the declared dependencies. A wrong one is left out: it is no reason to stop calling the pod."""
    uses: dict[int, TcpUse] = {}
    for text in filter(None, (part.strip() for part in field.text().split(","))):
        match = _USE.fullmatch(text)
        if match is None:
            field.warn(f"{text!r} is not host:port@listenPort", "such as redis.shop.svc.clusterset.local:6379@6379")
            continue
        use = TcpUse(match["host"], int(match["port"]), int(match["listen"]))
        if not is_dns_name(use.host):
            field.warn(f"{use.host!r} is not a host name")
        elif not (1 <= use.port <= 65535 and 1 <= use.listen_port <= 65535):
            field.warn(f"{text!r} has a number that is no port", "ports are 1 to 65535")
        elif use.listen_port in _OURS:
            field.warn(f"port {use.listen_port} is the sidecar's own", "listen on another port")
        elif use.listen_port in uses:
            field.warn(f"port {use.listen_port} is used for two dependencies", "give each its own port")
        else:
            uses[use.listen_port] = use
    return tuple(sorted(uses.values()))
