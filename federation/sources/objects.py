"""Kubernetes objects as values of the model, whatever their source: a folder of YAML, or a Kubernetes API.

An object with an error has no value; what is only strange gets a warning and stays in force. Fields that the mesh has
no use for are left alone, as it is one reader among several of the same objects.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from federation.model import Finding, Pod, PodKey, Service, ServiceExport, ServiceKey, Severity
from federation.snapshot import resolve_target, selects
from federation.sources.annotations import (
    EXPORT_TO,
    MEMBER_WEIGHTS,
    NO_WISHES,
    TCP_USES,
    WHEN_STALE,
    Wishes,
    check_annotations,
    contradictions,
    read_created,
    read_export_to,
    read_wishes,
)
from federation.sources.conversion import near
from federation.sources.documents import Document, FieldPath, field_text, load_documents
from federation.sources.fields import Field, Notes
from federation.sources.pods import read_pod
from federation.sources.services import read_service
from trust.spiffe import Namespace, is_dns_label, is_dns_name

DEFAULT_NAMESPACE = Namespace("default")
MCS_GROUP = "multicluster.x-k8s.io"

Value = Service | ServiceExport | Pod


class Kind(StrEnum):
    """The kinds of object that the mesh reads."""

    SERVICE = "Service"
    SERVICE_EXPORT = "ServiceExport"
    SERVICE_IMPORT = "ServiceImport"
    POD = "Pod"
    NAMESPACE = "Namespace"


class ObjectKey(msgspec.Struct, frozen=True, order=True):
    """Which object: two with equal keys are the same one. The namespace of a Namespace is empty."""

    kind: Kind
    namespace: Namespace
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class NamedTarget(msgspec.Struct, frozen=True):
    """A service port that goes to a container port by name; only the pods can tell whether there is one."""

    name: str
    field: str
    line: int


class ReadObject(msgspec.Struct, frozen=True):
    """One object as it was read. `line` is where its name stands.

    `value` is None when the object is broken, and also when it is sound but nothing for the mesh to route to
    (a Namespace, a headless Service, a finished Pod). `wishes` are what its annotations say of the service of its name;
    when these are broken, the rest of the object is in force all the same.
    """

    key: ObjectKey
    where: str
    line: int
    value: Value | None = None
    findings: tuple[Finding, ...] = ()
    is_broken: bool = False
    named_targets: tuple[NamedTarget, ...] = ()
    wishes: Wishes = NO_WISHES
    are_wishes_broken: bool = False


class Reading(msgspec.Struct, frozen=True):
    """All that one file says. `findings` are about what could not be recognised as an object.

    Without `is_complete`, something in the file was meant to be an object and nobody can tell which: what the file
    held before may still be in it.
    """

    where: str
    objects: tuple[ReadObject, ...] = ()
    findings: tuple[Finding, ...] = ()
    is_complete: bool = True


def read_objects(text: str, where: str) -> Reading:
    """Reads all objects of a file. `where` is the file's name as the user gave it."""
    documents, findings = load_documents(text, where)
    is_complete = not findings
    objects: list[ReadObject] = []
    for document in documents:
        for path, value in _items(document):
            notes = Notes(document)
            notes.findings += _flaws(document, path)
            read = _read(Field(notes, path, value))
            if read is None:
                findings += notes.findings
                is_complete = is_complete and not notes.is_broken
            else:
                objects.append(read)
    return Reading(where, tuple(objects), tuple(findings), is_complete)


def cross_check(objects: Mapping[ObjectKey, ReadObject]) -> tuple[Finding, ...]:
    """Returns warnings about objects that are sound by themselves but do not go together."""
    findings: list[Finding] = []
    pods = [each.value for each in objects.values() if isinstance(each.value, Pod)]
    for key, read in sorted(objects.items()):
        match read.value:
            case ServiceExport():
                findings += _check_export(read, objects.get(ObjectKey(Kind.SERVICE, key.namespace, key.name)))
            case Service() as service if read.named_targets:
                findings += _check_targets(read, [pod for pod in pods if selects(service, pod)])
            case None if key.kind is Kind.SERVICE_IMPORT:
                findings += _check_wishes(read, objects.get(ObjectKey(Kind.SERVICE, key.namespace, key.name)))
    return tuple(findings)


def _check_export(export: ReadObject, service: ReadObject | None) -> Iterable[Finding]:
    if service is not None and service.value is not None:
        return
    name = f"Service {export.key.namespace}/{export.key.name}"
    if service is None:
        message, hint = f"there is no {name}", "an export names a Service of its own namespace and its own name"
    elif service.is_broken:
        message, hint = f"{name} has an error", f"see {service.where}:{service.line}"
    else:
        message, hint = f"{name} is left out of the mesh", f"see {service.where}:{service.line}"
    yield _warning(export, export.line, "metadata.name", f"nothing is exported: {message}", hint)


def _check_targets(service: ReadObject, pods: list[Pod]) -> Iterable[Finding]:
    for target in service.named_targets:
        if pods and not any(resolve_target(target.name, 0, pod) for pod in pods):
            known = {name for pod in pods for name, _ in pod.ports}
            meant = near(target.name, known)
            hint = f"did you mean `{meant}`?" if meant else "name a container port, or write its number"
            message = f"no pod of this service has a container port named {target.name!r}"
            yield _warning(service, target.line, target.field, message, hint)


def _check_wishes(of_import: ReadObject, service: ReadObject | None) -> Iterable[Finding]:
    if service is None:
        return
    for name, here, there in contradictions(of_import.wishes, service.wishes):
        message = f"{service.key} ({service.where}:{service.line}) says {there}, and this says {here}: this counts"
        yield _warning(of_import, of_import.line, f"metadata.annotations[{name}]", message, "keep one of the two")


def _warning(read: ReadObject, line: int, field: str, message: str, hint: str) -> Finding:
    return Finding(read.where, line, str(read.key), field, message, hint, Severity.WARNING)


def _flaws(document: Document, path: FieldPath) -> list[Finding]:
    """Returns the document's flaws that are inside the value at `path`."""
    inside = field_text(path)
    return [flaw for flaw in document.flaws if not path or flaw.field.startswith((inside + ".", inside + "["))]


def _items(document: Document) -> Iterable[tuple[FieldPath, object]]:
    """Yields the objects of a document: itself, or the items of a `kubectl get -o yaml` list."""
    match document.value:
        case {"kind": "List", "items": list(items)}:
            for index, item in enumerate(items):
                yield ("items", index), item
        case value:
            yield (), value


_GROUPS = {
    Kind.SERVICE: "",
    Kind.POD: "",
    Kind.NAMESPACE: "",
    Kind.SERVICE_EXPORT: MCS_GROUP,
    Kind.SERVICE_IMPORT: MCS_GROUP,
}
_ANNOTATIONS = {
    Kind.SERVICE: (WHEN_STALE, MEMBER_WEIGHTS),
    Kind.POD: (TCP_USES,),
    Kind.NAMESPACE: (),
    Kind.SERVICE_EXPORT: (EXPORT_TO,),
    Kind.SERVICE_IMPORT: (WHEN_STALE, MEMBER_WEIGHTS),
}
_VERSIONS = {"": ("v1",), MCS_GROUP: (f"{MCS_GROUP}/v1beta1", f"{MCS_GROUP}/v1alpha1")}
_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA = (
    *("name", "namespace", "labels", "annotations", "generateName", "uid", "resourceVersion", "generation", "selfLink"),
    *("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"),
    *("finalizers", "ownerReferences", "managedFields"),
)


def _read(field: Field) -> ReadObject | None:
    """Reads one object; None, with notes, when it is not even clear which object it is, or no business of the mesh."""
    if not isinstance(field.value, dict):
        field.error("not a Kubernetes object", "an object starts with `apiVersion:` and `kind:` in the first column")
        return None
    kind = _kind(field)
    if kind is None:
        return None
    notes = field.notes
    notes.subject = kind
    metadata = field["metadata"]
    if not metadata.require_mapping():
        return None
    name = metadata["name"]
    if not name.is_given:
        name.missing("give the object a name")
        return None
    key = ObjectKey(kind, _namespace(kind, metadata["namespace"]), name.text())
    if not key.name:
        return None
    notes.subject = str(key)
    notes.findings = [msgspec.structs.replace(each, object=str(key)) for each in notes.findings]
    _check_identity(key, name, metadata["namespace"])
    versions = _VERSIONS[_GROUPS[kind]]
    if field["apiVersion"].text() not in versions:
        _wrong_version(field["apiVersion"], versions)
    field.check_names(_TOP)
    metadata.check_names(_METADATA)
    value = _value(key, field)
    targets = _named_targets(field) if isinstance(value, Service) else ()
    is_broken = notes.is_broken
    check_annotations(metadata["annotations"], _ANNOTATIONS[kind], kind=kind)
    wishes = NO_WISHES
    if WHEN_STALE in _ANNOTATIONS[kind]:
        # A slip in a wish must not take the service away: it has no part in whether it can be called.
        before = len(notes.findings)
        wishes = read_wishes(metadata["annotations"])
        are_wishes_broken = any(each.severity is Severity.ERROR for each in notes.findings[before:])
    else:
        are_wishes_broken = False
    return ReadObject(
        key=key,
        where=notes.document.where,
        line=name.line,
        value=None if is_broken else value,
        findings=tuple(notes.findings),
        is_broken=is_broken,
        named_targets=targets,
        wishes=wishes,
        are_wishes_broken=are_wishes_broken,
    )


def _kind(field: Field) -> Kind | None:
    """Returns the kind if it is one of ours or was meant to be; otherwise notes why not."""
    kind, version = field["kind"].text(), field["apiVersion"].text()
    if not kind:
        field["kind"].missing("an object starts with `apiVersion:` and `kind:`")
        return None
    if kind in list(Kind):
        expected = _VERSIONS[_GROUPS[Kind(kind)]]
        if not version or "/" not in version or version.partition("/")[0] == _GROUPS[Kind(kind)]:
            return Kind(kind)
        if near(version, expected):
            return Kind(kind)
        # knative has a Service too, and GKE a ServiceExport: those are none of ours.
        hint = f"the {kind} that the mesh reads has `apiVersion: {expected[0]}`"
        field["apiVersion"].warn(f"{kind} of {version} is not read by the mesh", hint)
        return None
    meant = None if kind.endswith("List") else near(kind, list(Kind))
    if meant and version in ("", *_VERSIONS[_GROUPS[Kind(meant)]]):
        field["kind"].error(f"there is no kind {kind!r}", f"did you mean `{meant}`?")
        return None
    hint = "it does no harm here; the mesh reads " + ", ".join(Kind)
    notes = field.notes
    notes.subject = kind
    field["kind"].warn(f"{kind} is not read by the mesh", hint)
    return None


def _namespace(kind: Kind, field: Field) -> Namespace:
    if kind is Kind.NAMESPACE:
        return Namespace("")
    return Namespace(field.text() or DEFAULT_NAMESPACE)


def _check_identity(key: ObjectKey, name: Field, namespace: Field) -> None:
    if key.kind is Kind.POD:
        if not is_dns_name(key.name):
            name.error(f"{key.name!r} is not a name", "lower-case letters, digits, '-' and '.', at most 253")
    elif not is_dns_label(key.name):
        name.error(f"{key.name!r} is not a name", "lower-case letters, digits and '-', at most 63")
    if key.namespace and not is_dns_label(key.namespace):
        namespace.error(f"{key.namespace!r} is not a namespace", "lower-case letters, digits and '-', at most 63")


def _wrong_version(field: Field, versions: tuple[str, ...]) -> None:
    if field.is_given:
        field.error(f"version {field.value} is not known", f"write `apiVersion: {versions[0]}`")
    else:
        field.missing(f"write `apiVersion: {versions[0]}`")


def _value(key: ObjectKey, field: Field) -> Value | None:
    match key.kind:
        case Kind.SERVICE:
            return read_service(ServiceKey(key.namespace, key.name), field)
        case Kind.SERVICE_EXPORT:
            metadata = field["metadata"]
            return ServiceExport(
                ServiceKey(key.namespace, key.name),
                export_to=read_export_to(metadata["annotations"][EXPORT_TO]),
                created=read_created(metadata["creationTimestamp"]),
            )
        case Kind.POD:
            return read_pod(PodKey(key.namespace, key.name), field)
        case Kind.NAMESPACE | Kind.SERVICE_IMPORT:
            return None  # the spec of an import is the MCS controller's: what is imported follows from the exports


def _named_targets(field: Field) -> tuple[NamedTarget, ...]:
    ports = [port for port in field["spec"]["ports"].items() if port["protocol"].text("TCP") == "TCP"]
    targets = [port["targetPort"] for port in ports]
    return tuple(NamedTarget(each.text(), each.name, each.line) for each in targets if isinstance(each.value, str))
