"""YAML text as plain values that still know on which line each of them stands.

Kubernetes manifests and lab files are both read here, so that every complaint about them names file, line and field.
"""

from typing import TypeVar

import msgspec

from federation.model import Finding, Severity

Step = str | int
FieldPath = tuple[Step, ...]
"""Where a value stands in a document: `("spec", "ports", 0, "port")`."""

T = TypeVar("T")


class Document(msgspec.Struct, frozen=True, eq=False):
    """One YAML document of a file: `value` is made of None, bool, int, float, str, list and dict with str keys.

    `flaws` are errors of the document itself that leave it readable, such as a key that is written twice.
    """

    where: str
    value: object
    flaws: tuple[Finding, ...] = ()

    def line(self, path: FieldPath = ()) -> int:
        """Returns the line, from 1, of the key or list item at `path`, or of its nearest ancestor that exists."""
        raise NotImplementedError

    def finding(
        self,
        path: FieldPath,
        message: str,
        *,
        hint: str = "",
        subject: str = "",
        severity: Severity = Severity.ERROR,
    ) -> Finding:
        """Makes a finding about the value at `path`; `subject` is the Finding's `object`."""
        raise NotImplementedError


def load_documents(text: str, where: str) -> tuple[list[Document], list[Finding]]:
    """Reads all documents of a file (YAML or JSON). `where` is the file's name as the user gave it.

    The findings are about parts that could not be read at all; every other document of the file is still returned.
    Empty documents are left out.
    """
    raise NotImplementedError


def convert(
    document: Document, type_: type[T], *, path: FieldPath = (), subject: str = ""
) -> tuple[T | None, list[Finding]]:
    """Converts the value at `path` to a msgspec type: (value, []) or (None, findings with line, field and hint).

    A document with flaws does not convert. Structs that shall refuse unknown fields say so themselves
    (`forbid_unknown_fields=True`); the hint then names the field that was probably meant.
    """
    raise NotImplementedError


def field_text(path: FieldPath) -> str:
    """Prints a path as Kubernetes does: `spec.ports[0].port`, `metadata.labels[app.kubernetes.io/name]`."""
    raise NotImplementedError
