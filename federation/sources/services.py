"""A Kubernetes Service as a value of the model: which pods, which ports, and what each port speaks."""

import re

from federation.model import Protocol, Service, ServiceKey, ServicePort
from federation.sources.conversion import near
from federation.sources.fields import Field

PROTOCOLS = {
    "http": Protocol.HTTP,
    "http1": Protocol.HTTP,
    "ws": Protocol.HTTP,
    "grpc-web": Protocol.HTTP,
    "kubernetes.io/ws": Protocol.HTTP,
    "http2": Protocol.HTTP2,
    "h2c": Protocol.HTTP2,
    "kubernetes.io/h2c": Protocol.HTTP2,
    "grpc": Protocol.GRPC,
    # What is encrypted by the program itself cannot be read on the way: it is carried as it is.
    "tcp": Protocol.TCP,
    "tls": Protocol.TCP,
    "https": Protocol.TCP,
    "wss": Protocol.TCP,
    "kubernetes.io/wss": Protocol.TCP,
    "redis": Protocol.TCP,
    "mysql": Protocol.TCP,
    "mongo": Protocol.TCP,
    "mongodb": Protocol.TCP,
    "postgresql": Protocol.TCP,
    "amqp": Protocol.TCP,
    "kafka": Protocol.TCP,
}
"""By `appProtocol` (IANA names and Kubernetes' own, KEP-2844) or by the first part of a port's name; others are TCP."""

_USUAL_HTTP_PORTS = frozenset({80, 8080})
_PORT_NAME = re.compile(r"(?=[a-z0-9-]*[a-z])(?!.*--)[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")  # IANA service name, RFC 6335
_PORT_FIELDS = ("appProtocol", "name", "nodePort", "port", "protocol", "targetPort")
_SPEC_FIELDS = (
    *("selector", "ports", "type", "clusterIP", "clusterIPs", "externalName", "externalIPs", "externalTrafficPolicy"),
    *("internalTrafficPolicy", "trafficDistribution", "healthCheckNodePort", "ipFamilies", "ipFamilyPolicy"),
    *("allocateLoadBalancerNodePorts", "loadBalancerClass", "loadBalancerIP", "loadBalancerSourceRanges"),
    *("publishNotReadyAddresses", "sessionAffinity", "sessionAffinityConfig"),
)


def read_service(key: ServiceKey, field: Field) -> Service | None:
    """Reads a Service; None, with a warning, when it is of a kind that the mesh leaves out."""
    spec = field["spec"]
    if not spec.require_mapping():
        return None
    spec.check_names(_SPEC_FIELDS)
    if spec["type"].text() == "ExternalName":
        spec["type"].warn("an ExternalName service is left out of the mesh", "callers use the external name itself")
        return None
    if spec["clusterIP"].text() == "None":
        hint = "its pods are still reached by their addresses; give it a cluster IP to have it balanced"
        spec["clusterIP"].warn("a headless service is left out of the mesh", hint)
        return None
    selector = _selector(spec["selector"])
    ports = _ports(spec["ports"])
    return Service(key, ports, selector) if ports else None


def read_protocol(app_protocol: str, port_name: str) -> Protocol:
    """Returns what a service port speaks: appProtocol has the last word, then the port's name, then it is TCP."""
    if app_protocol:
        return PROTOCOLS.get(app_protocol.lower(), Protocol.TCP)
    if port_name == "grpc-web" or port_name.startswith("grpc-web-"):
        return Protocol.HTTP
    return PROTOCOLS.get(port_name.partition("-")[0], Protocol.TCP)


def _selector(field: Field) -> tuple[tuple[str, str], ...]:
    if not field.is_given or field.value == {}:
        field.warn("without a selector the service has no endpoints", "name the labels of its pods under `selector`")
        return ()
    for nested in ("matchLabels", "matchExpressions"):
        if field[nested].is_given:
            field[nested].error(f"a Service's selector knows no {nested}", "write the labels directly under `selector`")
            return ()
    return field.texts()


def _ports(field: Field) -> tuple[ServicePort, ...]:
    """Reads the ports that the mesh carries."""
    entries = field.items()
    if not field.is_given:
        field.missing("a service has at least one port")
    elif not entries and isinstance(field.value, list):
        field.error("a service has at least one port")
    ports: dict[int, ServicePort] = {}
    names: set[str] = set()
    for entry in entries:
        port = _port(entry)
        if port is None:
            continue
        if port.number in ports:
            entry["port"].error(f"port {port.number} is in the list twice")
        if port.name in names and port.name:
            entry["name"].error(f"two ports have the name {port.name!r}")
        elif not port.name and len(entries) > 1:
            entry["name"].warn("Kubernetes wants every port named when there are several", "give each port a `name`")
        names.add(port.name)
        ports.setdefault(port.number, port)
    return tuple(ports.values())


def _port(field: Field) -> ServicePort | None:
    if not field.require_mapping():
        return None
    field.check_names(_PORT_FIELDS)
    transport = field["protocol"].text("TCP")
    if transport in ("UDP", "SCTP"):
        field["protocol"].warn(f"the mesh does not carry {transport}: this port is left out")
        return None
    if transport != "TCP":
        hint = "what the port speaks goes into `appProtocol`" if transport.lower() in PROTOCOLS else ""
        field["protocol"].error(f"{transport!r} is not TCP, UDP or SCTP", hint)
    name = field["name"].text()
    if name and not _is_service_port_name(name):
        field["name"].error(f"{name!r} is not a port name", "lower-case letters, digits and '-', at most 63")
    target = _target(field["targetPort"])
    if not field["port"].is_given:
        field["port"].missing()
    number = field["port"].port()
    protocol = _protocol(field, number, name)
    return ServicePort(number, protocol, name, target or number) if number else None


def _protocol(field: Field, number: int | None, name: str) -> Protocol:
    declared = field["appProtocol"]
    app_protocol = declared.text()
    if app_protocol and app_protocol.lower() not in PROTOCOLS and (meant := near(app_protocol, PROTOCOLS)):
        declared.warn(f"{app_protocol!r} is not known and carried as plain TCP", f"did you mean `{meant}`?")
    if not app_protocol and not name and number in _USUAL_HTTP_PORTS:
        hint = "write `appProtocol: http` for requests to be retried and balanced one by one, or `tcp` to say so"
        field["port"].warn(f"port {number} does not say what it speaks and is carried as plain TCP", hint)
    return read_protocol(app_protocol, name)


def _target(field: Field) -> int | str:
    """Reads a target port: a number, the name of a container port, or 0 when there is none."""
    if not isinstance(field.value, str):
        return field.port() or 0
    if field.value.isdecimal():
        field.error("a target port in quotes is the name of a container port", "write it without quotes")
    elif not is_port_name(field.value):
        field.error(f"{field.value!r} is not the name of a port", "at most 15 lower-case letters, digits and '-'")
    return field.value


def is_port_name(text: str) -> bool:
    """Says whether a container port can have this name: at most 15 characters, at least one letter."""
    return _PORT_NAME.fullmatch(text) is not None


def _is_service_port_name(text: str) -> bool:
    return re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text) is not None
