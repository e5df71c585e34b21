"""Objects: Kubernetes YAML becomes values of the model, and what is wrong with it is told where it stands."""

import pytest

from federation.model import (
    Finding,
    Locality,
    Pod,
    PodKey,
    Protocol,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePort,
    Severity,
    TcpUse,
)
from federation.sources.objects import Kind, ObjectKey, Reading, read_objects
from federation.sources.services import read_protocol
from tests.support.manifests import EXPORT, POD, SERVICE
from trust.spiffe import Namespace, ServiceAccount

SHOP = Namespace("shop")


def one(text: str) -> object:
    reading = read_objects(text, "some.yaml")
    assert reading.is_complete
    assert len(reading.objects) == 1
    read = reading.objects[0]
    assert not read.findings
    assert not read.is_broken
    return read.value


def told(reading: Reading) -> list[Finding]:
    return [*reading.findings, *(finding for read in reading.objects for finding in read.findings)]


def test_a_service() -> None:
    assert one(SERVICE) == Service(
        key=ServiceKey(SHOP, "cart"),
        ports=(
            ServicePort(80, Protocol.HTTP, "http", "web"),
            ServicePort(5432, Protocol.TCP, "db", 5432),
        ),
        selector=(("app", "cart"),),
    )


@pytest.mark.parametrize("version", ["v1beta1", "v1alpha1"])
def test_a_service_export(version: str) -> None:
    assert one(EXPORT.replace("v1beta1", version)) == ServiceExport(ServiceKey(SHOP, "cart"))


def test_a_pod() -> None:
    assert one(POD) == Pod(
        key=PodKey(SHOP, "cart-1"),
        address="127.20.1.5",
        account=ServiceAccount("cart"),
        locality=Locality("eu", "a", "one"),
        ready=True,
        labels=(
            ("app", "cart"),
            ("isthmus.dev/cloud", "one"),
            ("topology.kubernetes.io/region", "eu"),
            ("topology.kubernetes.io/zone", "a"),
        ),
        ports=(("admin", 9000), ("web", 8080)),
        uses=(TcpUse("db", 5432, 5432), TcpUse("redis.shop.svc.clusterset.local", 6379, 6380)),
    )


def test_the_smallest_pod_has_the_defaults_of_kubernetes() -> None:
    pod = one("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: []}\nstatus: {podIP: '::1'}\n")
    assert pod == Pod(PodKey(Namespace("default"), "p"), "::1", ServiceAccount("default"), Locality(), ready=False)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('type: Ready\n      status: "True"', 'type: Ready\n      status: "False"'),
        ("type: Ready", "type: ContainersReady"),
        ("name: cart-1\n", "name: cart-1\n  deletionTimestamp: 2024-05-01T00:00:00Z\n"),
    ],
)
def test_a_pod_that_may_not_be_called_is_not_ready(old: str, new: str) -> None:
    assert old in POD
    pod = one(POD.replace(old, new))
    assert isinstance(pod, Pod)
    assert not pod.ready


@pytest.mark.parametrize(
    ("old", "new"), [("  podIP: 127.20.1.5\n", ""), ("Running", "Succeeded"), ("Running", "Failed")]
)
def test_a_pod_without_address_or_that_has_finished_is_nobody(old: str, new: str) -> None:
    assert one(POD.replace(old, new)) is None


def test_a_namespace_is_sound_and_routes_nothing() -> None:
    assert one("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n") is None


def test_a_list_of_objects_is_its_items() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n" + "".join(
        "- " + text.replace("\n", "\n  ").rstrip() + "\n" for text in (SERVICE, EXPORT)
    )
    reading = read_objects(text.replace("port: 5432", "prot: 5432"), "some.yaml")
    assert [str(read.key) for read in reading.objects] == ["Service shop/cart", "ServiceExport shop/cart"]
    assert [(finding.line, finding.field) for finding in told(reading)] == [(19, "items[0].spec.ports[1].prot")]
    assert [read.is_broken for read in reading.objects] == [True, False]


@pytest.mark.parametrize(
    ("app_protocol", "name", "protocol"),
    [
        ("http", "", Protocol.HTTP),
        ("HTTP", "", Protocol.HTTP),
        ("kubernetes.io/h2c", "", Protocol.HTTP2),
        ("kubernetes.io/ws", "", Protocol.HTTP),
        ("kubernetes.io/wss", "", Protocol.TCP),
        ("https", "", Protocol.TCP),
        ("grpc", "http", Protocol.GRPC),
        ("redis", "http", Protocol.TCP),
        ("example.com/own", "http", Protocol.TCP),
        ("", "", Protocol.TCP),
        ("", "http", Protocol.HTTP),
        ("", "http-web", Protocol.HTTP),
        ("", "http2-web", Protocol.HTTP2),
        ("", "grpc-api", Protocol.GRPC),
        ("", "grpc-web", Protocol.HTTP),
        ("", "grpc-web-api", Protocol.HTTP),
        ("", "tcp-http", Protocol.TCP),
        ("", "httpx", Protocol.TCP),
        ("", "web", Protocol.TCP),
    ],
)
def test_app_protocol_goes_before_the_name_of_the_port(app_protocol: str, name: str, protocol: Protocol) -> None:
    assert read_protocol(app_protocol, name) is protocol


BROKEN = [
    (SERVICE, "name: cart\n", "name: Cart\n", 4, "metadata.name", "'Cart' is not a name", "lower-case"),
    (SERVICE, "namespace: shop", "namespace: a_b", 5, "metadata.namespace", "not a namespace", "lower-case"),
    (SERVICE, "namespace: shop", "namespace: 5", 5, "metadata.namespace", "expected text", "put it in quotes"),
    (SERVICE, "apiVersion: v1", "apiVersion: v2", 1, "apiVersion", "version v2 is not known", "apiVersion: v1"),
    (SERVICE, "apiVersion: v1\n", "", 1, "apiVersion", "`apiVersion` is missing", "apiVersion: v1"),
    (SERVICE, "port: 80", "port: 80000", 13, "spec.ports[0].port", "80000 is no port number", "1 to 65535"),
    (SERVICE, "port: 80", 'port: "80"', 13, "spec.ports[0].port", "got text", "without quotes"),
    (SERVICE, "port: 80", "port: yes", 13, "spec.ports[0].port", "got true", ""),
    (SERVICE, "port: 80", "port: 5432", 16, "spec.ports[1].port", "in the list twice", ""),
    (SERVICE, "port: 80\n", "prot: 80\n", 13, "spec.ports[0].prot", "`port` is missing", "misspelling"),
    (SERVICE, "      port: 5432\n", "", 15, "spec.ports[1].port", "`port` is missing", ""),
    (SERVICE, "name: db", "name: http", 15, "spec.ports[1].name", "two ports have the name 'http'", ""),
    (SERVICE, "name: db", "name: D_B", 15, "spec.ports[1].name", "not a port name", "lower-case"),
    (SERVICE, "targetPort: web", 'targetPort: "8080"', 14, "spec.ports[0].targetPort", "in quotes", "without quotes"),
    (SERVICE, "targetPort: web", "targetPort: a_b", 14, "spec.ports[0].targetPort", "not the name of a port", "15"),
    (SERVICE, "targetPort: web", "targetPort: 0", 14, "spec.ports[0].targetPort", "0 is no port number", ""),
    (SERVICE, "targetPort: web", "protocol: http", 14, "spec.ports[0].protocol", "not TCP", "appProtocol"),
    (SERVICE, "app: cart\n", "version: 1\n", 10, "spec.selector.version", "the number 1", "put it in quotes"),
    (SERVICE, "app: cart\n", "matchLabels: {app: cart}\n", 10, "spec.selector.matchLabels", "knows no", "directly"),
    (SERVICE, "selector:\n    app: cart", "selector: cart", 9, "spec.selector", "expected a mapping", ""),
    (SERVICE, SERVICE[SERVICE.index("  ports:") :], "  ports: []\n", 11, "spec.ports", "at least one port", ""),
    (SERVICE, SERVICE[SERVICE.index("  ports:") :], "  ports: 80\n", 11, "spec.ports", "expected a list", "'- '"),
    (SERVICE, SERVICE[SERVICE.index("  ports:") :], "  ports: [80]\n", 11, "spec.ports[0]", "expected a mapping", ""),
    (SERVICE, SERVICE[SERVICE.index("spec:") :], "spec:\n", 7, "spec", "`spec` is missing", ""),
    (SERVICE, SERVICE[SERVICE.index("spec:") :], "", 1, "spec", "`spec` is missing", ""),
    (
        SERVICE,
        "    - name: db",
        "      port: 80\n    - name: db",
        15,
        "spec.ports[0].port",
        "written twice",
        "keep one",
    ),
    (EXPORT, "multicluster.x-k8s.io/v1beta1", "multicluster.x-k8s.io/v2", 1, "apiVersion", "not known", "v1beta1"),
    (EXPORT, "multicluster.x-k8s.io", "multicluster.k8s.io", 1, "apiVersion", "not known", "x-k8s.io/v1beta1"),
    (POD, "podIP: 127.20.1.5", "podIP: 127.20.1.500", 27, "status.podIP", "not an IP address", ""),
    (POD, "serviceAccountName: cart", "serviceAccountName: C", 14, "spec.serviceAccountName", "not the name", ""),
    (POD, "containerPort: 9090", "name: x", 20, "spec.containers[0].ports[1].containerPort", "is missing", ""),
    (POD, "conditions:\n", "conditions: ready\n  more:\n", 28, "status.conditions", "expected a list", ""),
]


@pytest.mark.parametrize(("text", "old", "new", "line", "field", "message", "hint"), BROKEN)
def test_a_broken_object_is_told_with_line_field_and_hint(
    text: str, old: str, new: str, line: int, field: str, message: str, hint: str
) -> None:
    assert old in text
    reading = read_objects(text.replace(old, new, 1), "some.yaml")
    assert reading.is_complete
    (read,) = reading.objects
    errors = [finding for finding in read.findings if finding.severity is Severity.ERROR]
    assert [(finding.line, finding.field) for finding in errors] == [(line, field)]
    assert message in errors[0].message
    assert hint in errors[0].hint
    assert (errors[0].where, errors[0].object) == ("some.yaml", str(read.key))
    assert read.is_broken
    assert read.value is None


def test_everything_wrong_with_an_object_is_told_at_once() -> None:
    text = SERVICE.replace("port: 80", "port: 0").replace("app: cart", "app: 1").replace("name: db", "name: D")
    (read,) = read_objects(text, "some.yaml").objects
    assert [finding.line for finding in read.findings] == [10, 13, 15]


@pytest.mark.parametrize(
    ("text", "old", "new", "line", "field", "hint"),
    [
        (SERVICE, "targetPort: web", "targetport: 8080", 14, "spec.ports[0].targetport", "`targetPort`"),
        (SERVICE, "targetPort: web", "appProtocol: htpp", 14, "spec.ports[0].appProtocol", "`http`"),
        (
            SERVICE,
            "    - name: http\n      port: 80",
            "    - port: 80\n      name:",
            13,
            "spec.ports[0].name",
            "`name`",
        ),
        (SERVICE, "  selector:\n    app: cart\n", "  selecter:\n    app: cart\n", 9, "spec.selecter", "`selector`"),
        (SERVICE, "labels:", "lables:", 6, "metadata.lables", "`labels`"),
        (POD, "serviceAccountName", "serviceAccontName", 14, "spec.serviceAccontName", "`serviceAccountName`"),
        (POD, "db:5432@5432", "db@5432", 12, "metadata.annotations[isthmus.dev/tcp-uses]", "6379@6379"),
        (POD, "db:5432@5432", "db:5432@15001", 12, "metadata.annotations[isthmus.dev/tcp-uses]", "another port"),
        (POD, "db:5432@5432", "db:5432@6380", 12, "metadata.annotations[isthmus.dev/tcp-uses]", "its own port"),
    ],
)
def test_what_is_only_strange_leaves_the_object_in_force(
    text: str, old: str, new: str, line: int, field: str, hint: str
) -> None:
    assert old in text
    reading = read_objects(text.replace(old, new, 1), "some.yaml")
    (read,) = reading.objects
    assert not read.is_broken
    assert read.value is not None
    finding = next(finding for finding in read.findings if finding.field == field)
    assert (finding.line, finding.severity) == (line, Severity.WARNING)
    assert hint in finding.hint


def test_fields_that_the_mesh_has_no_use_for_are_left_alone() -> None:
    text = SERVICE.replace("type: ClusterIP", "sessionAffinity: ClientIP\n  sidecars: yes\n  x: {y: [z]}")
    assert one(text) is not None


def test_ports_that_are_not_tcp_are_left_out() -> None:
    text = SERVICE.replace("port: 5432", "port: 5432\n      protocol: UDP\n      targetPort: x")
    (read,) = read_objects(text, "some.yaml").objects
    assert isinstance(read.value, Service)
    assert [port.number for port in read.value.ports] == [80]
    assert [target.name for target in read.named_targets] == ["web"]
    assert [(finding.line, finding.severity) for finding in read.findings] == [(17, Severity.WARNING)]
    (read,) = read_objects(text.replace("targetPort: web", "protocol: SCTP"), "some.yaml").objects
    assert read.value is None
    assert not read.is_broken


@pytest.mark.parametrize(
    ("new", "field", "message"),
    [
        ("type: ExternalName\n  externalName: a.b", "spec.type", "ExternalName"),
        ("clusterIP: None", "spec.clusterIP", "headless"),
    ],
)
def test_services_of_kinds_that_the_mesh_leaves_out_are_no_errors(new: str, field: str, message: str) -> None:
    (read,) = read_objects(SERVICE.replace("type: ClusterIP", new), "some.yaml").objects
    assert read.value is None
    assert not read.is_broken
    assert [(finding.line, finding.field, finding.severity) for finding in read.findings] == [
        (8, field, Severity.WARNING)
    ]
    assert message in read.findings[0].message


def test_port_80_that_does_not_say_what_it_speaks_gets_a_hint() -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  selector: {a: b}\n  ports: [{port: 80}]\n"
    (read,) = read_objects(text, "some.yaml").objects
    assert isinstance(read.value, Service)
    assert [finding.line for finding in read.findings] == [6]
    assert "appProtocol: http" in read.findings[0].hint


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n", "Deployment is not read", "no harm"),
        (SERVICE.replace("apiVersion: v1", "apiVersion: serving.knative.dev/v1"), "knative", "`apiVersion: v1`"),
        ("apiVersion: v1\nkind: PodList\nitems: []\n", "PodList is not read", "no harm"),
    ],
)
def test_kinds_that_the_mesh_does_not_read_are_a_warning(text: str, message: str, hint: str) -> None:
    reading = read_objects(text, "some.yaml")
    assert reading.objects == ()
    assert reading.is_complete
    (finding,) = reading.findings
    assert finding.severity is Severity.WARNING
    assert message in finding.message
    assert hint in finding.hint


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (SERVICE.replace("Service", "Servce"), 2, "no kind 'Servce'", "`Service`"),
        (SERVICE.replace("kind: Service\n", ""), 1, "`kind` is missing", ""),
        (SERVICE.replace("name: cart\n", "nmae: cart\n", 1), 4, "`name` is missing", "`nmae`"),
        (SERVICE.replace("name: cart\n", "name: 5\n", 1), 4, "expected text", "quotes"),
        ("apiVersion: v1\nkind: Service\nmetadata: cart\n", 3, "expected a mapping", "indentation"),
        ("- apiVersion: v1\n", 1, "not a Kubernetes object", "first column"),
        ("a: [\n", 1, "not YAML", "bracket"),
    ],
)
def test_what_cannot_be_recognised_makes_the_reading_incomplete(text: str, line: int, message: str, hint: str) -> None:
    reading = read_objects(text, "some.yaml")
    assert reading.objects == ()
    assert not reading.is_complete
    (finding,) = reading.findings
    assert (finding.line, finding.severity) == (line, Severity.ERROR)
    assert message in finding.message
    assert hint in finding.hint


def test_keys_are_printed_as_users_write_them() -> None:
    assert str(ObjectKey(Kind.SERVICE, SHOP, "cart")) == "Service shop/cart"
    assert str(ObjectKey(Kind.NAMESPACE, Namespace(""), "shop")) == "Namespace shop"
