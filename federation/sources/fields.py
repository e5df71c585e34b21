"""Reads the fields of one object and notes everything that is wrong with them, instead of stopping at the first."""

from collections.abc import Iterable

import msgspec

from federation.model import Finding, Severity
from federation.sources.conversion import near
from federation.sources.documents import Document, FieldPath, field_text


class Notes:
    """What was found about one object so far. `subject` is its `Kind namespace/name`, as far as known."""

    def __init__(self, document: Document, subject: str = "") -> None:
        self.document = document
        self.subject = subject
        self.findings: list[Finding] = []

    @property
    def is_broken(self) -> bool:
        """Says whether there is an error among the findings."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)


class Field(msgspec.Struct, frozen=True, eq=False):
    """A place in an object: perhaps a value, perhaps nothing (`value` is None). Reading it wrongly notes an error."""

    notes: Notes
    path: FieldPath
    value: object
    siblings: tuple[str, ...] = ()  # the names of the mapping that it was looked up in

    def __getitem__(self, name: str) -> "Field":
        """Returns the field `name` of a mapping; of nothing or of something else, nothing."""
        entries = self.value if isinstance(self.value, dict) else {}
        return Field(self.notes, (*self.path, name), entries.get(name), tuple(entries))

    @property
    def is_given(self) -> bool:
        """Says whether there is a value; an explicit null is none, as in Kubernetes."""
        return self.value is not None

    @property
    def name(self) -> str:
        """The whole path as text."""
        return field_text(self.path)

    @property
    def line(self) -> int:
        """The line of the value, or of what should contain it."""
        return self.notes.document.line(self.path)

    def error(self, message: str, hint: str = "") -> None:
        """Notes that the object cannot be used because of this field."""
        self._note(message, hint, Severity.ERROR)

    def warn(self, message: str, hint: str = "") -> None:
        """Notes something that its writer should know and that does not stop the object from being used."""
        self._note(message, hint, Severity.WARNING)

    def missing(self, hint: str = "") -> None:
        """Notes that the field is required; when there seems to be a misspelt one instead, that is pointed at."""
        meant = near(str(self.path[-1]), self.siblings)
        if not meant:
            self.error(f"`{self.path[-1]}` is missing", hint)
            return
        written = Field(self.notes, (*self.path[:-1], meant), None)
        findings = self.notes.findings
        findings[:] = [finding for finding in findings if finding.field != written.name]  # this one says it better
        written.error(f"`{self.path[-1]}` is missing", f"is `{meant}` a misspelling of it?")

    def require_mapping(self) -> bool:
        """Says whether the value is a mapping; notes an error if not."""
        if not self.is_given:
            self.missing()
        elif not isinstance(self.value, dict):
            self.error(f"expected a mapping, got {_kind(self.value)}", "check the indentation of the lines below")
        return isinstance(self.value, dict)

    def items(self) -> list["Field"]:
        """Returns the items of a list; none when there is nothing."""
        if isinstance(self.value, list):
            return [Field(self.notes, (*self.path, index), item) for index, item in enumerate(self.value)]
        if self.is_given:
            self.error(f"expected a list, got {_kind(self.value)}", "each item of a list starts with '- '")
        return []

    def text(self, default: str = "") -> str:
        """Returns text; `default` when there is nothing or something else."""
        if isinstance(self.value, str):
            return self.value
        if self.is_given:
            self.error(f"expected text, got {_kind(self.value)}", _text_hint(self.value))
        return default

    def texts(self) -> tuple[tuple[str, str], ...]:
        """Returns a mapping of text to text, sorted, such as labels; empty when there is nothing."""
        if not self.is_given:
            return ()
        if not isinstance(self.value, dict):
            self.error(f"expected a mapping of text to text, got {_kind(self.value)}")
            return ()
        # In Kubernetes a label without a value (null) is the empty text.
        return tuple(sorted((key, self[key].text()) for key in self.value))

    def port(self) -> int | None:
        """Returns a port number; None when there is nothing or no port."""
        match self.value:
            case bool() | float() | dict() | list():
                self.error(f"expected a port number, got {_kind(self.value)}")
            case str(text) if text.isdecimal():
                self.error("expected a port number, got text", "write it without quotes")
            case str():
                self.error(f"expected a port number, got {self.value!r}")
            case int(number) if not 1 <= number <= 65535:
                self.error(f"{number} is no port number", "ports are 1 to 65535")
            case int(number):
                return number
        return None

    def check_names(self, known: Iterable[str]) -> None:
        """Warns of names that are not known and look like a misspelling of one that is."""
        if not isinstance(self.value, dict):
            return
        known = frozenset(known)
        for name in sorted(self.value.keys() - known):
            meant = near(name, known - self.value.keys())
            if meant:
                self[name].warn(f"`{name}` is not a field of this object and has no effect", f"did you mean `{meant}`?")

    def _note(self, message: str, hint: str, severity: Severity) -> None:
        notes = self.notes
        finding = notes.document.finding(self.path, message, hint=hint, subject=notes.subject, severity=severity)
        notes.findings.append(finding)


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "a mapping"


def _text_hint(value: object) -> str:
    return "put it in quotes" if isinstance(value, bool | int | float) else ""
