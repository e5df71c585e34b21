"""YAML text as plain values that still know on which line each of them stands.

Kubernetes manifests and lab files are both read here, so that every complaint about them names file, line and field.
The tree is built from the parser's events, not by PyYAML's composer: that one recurses in C, and a file of a hundred
thousand brackets would end the process. It also splits documents itself, so that a broken one costs only itself.
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

import msgspec
import yaml

from federation.model import Finding, Severity
from federation.sources.conversion import Misfit, fit
from federation.sources.scalars import read_plain

Step = str | int
FieldPath = tuple[Step, ...]
"""Where a value stands in a document: `("spec", "ports", 0, "port")`."""

T = TypeVar("T")

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_MARKER = re.compile(r"^---(?=\s|$)", re.MULTILINE)
"""A document starts here. YAML forbids this text in column 0 anywhere else, inside block scalars and quotes too."""
_BARE = re.compile(r"(?:\s|#.*|%.*)*")
"""Nothing but blanks, comments and directives: no document."""
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MAX_DEPTH = 100  # nested lists and mappings; a CRD's schema has about 40
_MAX_SIZE = 1_000_000  # values after aliases are followed; ten lines of aliases can ask for billions
_TAG = "tag:yaml.org,2002:"


class Node(msgspec.Struct, frozen=True, eq=False):
    """A value and where its parts stand. `size` and `depth` count what aliases stand for."""

    value: object
    children: Mapping[Step, tuple[int, "Node"]] = MappingProxyType({})  # by step: line of the key or item
    size: int = 1
    depth: int = 1


class Document(msgspec.Struct, frozen=True, eq=False):
    """One YAML document of a file: `value` is made of None, bool, int, float, str, list and dict with str keys.

    `flaws` are errors of the document itself that leave it readable, such as a key that is written twice.
    """

    where: str
    first_line: int
    node: Node
    flaws: tuple[Finding, ...] = ()

    @property
    def value(self) -> object:
        """The whole document. Parts that an alias repeats are one object: do not change them."""
        return self.node.value

    def line(self, path: FieldPath = ()) -> int:
        """Returns the line, from 1, of the key or list item at `path`, or of its nearest ancestor that exists."""
        line, node = self.first_line, self.node
        for step in path:
            if step not in node.children:
                break
            line, node = node.children[step]
        return line

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
        return Finding(
            where=self.where,
            line=self.line(path),
            object=subject,
            field=field_text(path),
            message=message,
            hint=hint,
            severity=severity,
        )


def load_documents(text: str, where: str) -> tuple[list[Document], list[Finding]]:
    """Reads all documents of a file (YAML or JSON). `where` is the file's name as the user gave it.

    The findings are about parts that could not be read at all; every other document of the file is still returned.
    Empty documents are left out.
    """
    documents: list[Document] = []
    findings: list[Finding] = []
    for first, part in _parts(text):
        try:
            documents += _compose(part, where, first)
        except _Unreadable as error:
            findings.append(Finding(where, error.line, "", "", error.message, error.hint))
    return documents, findings


def convert(
    document: Document, type_: type[T], *, path: FieldPath = (), subject: str = ""
) -> tuple[T | None, list[Finding]]:
    """Converts the value at `path` to a msgspec type: (value, []) or (None, findings with line, field and hint).

    A document with flaws does not convert. Structs that shall refuse unknown fields say so themselves
    (`forbid_unknown_fields=True`); the hint then names the field that was probably meant.
    """
    if document.flaws:
        return None, list(document.flaws)
    node = document.node
    for step in path:
        if step not in node.children:
            return None, [document.finding(path, f"{field_text((step,))} is missing", subject=subject)]
        node = node.children[step][1]
    result = fit(node.value, type_)
    if isinstance(result, Misfit):
        return None, [document.finding((*path, *result.path), result.message, hint=result.hint, subject=subject)]
    return result, []


def field_text(path: FieldPath) -> str:
    """Prints a path as Kubernetes does: `spec.ports[0].port`, `metadata.labels[app.kubernetes.io/name]`."""
    text = ""
    for step in path:
        if isinstance(step, int) or not re.fullmatch(r"[\w-]+", step):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


class _Unreadable(Exception):
    """A part of a file that is not YAML, or more of it than anybody writes by hand."""

    def __init__(self, message: str, line: int, hint: str) -> None:
        super().__init__(message)
        self.message, self.line, self.hint = message, line, hint


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """Yields each document's text and the line it starts on, from 0."""
    starts = [match.start() for match in _MARKER.finditer(text)]
    line, position = 0, 0
    for start in [*starts, len(text)]:
        part = text[position:start]
        if not _BARE.fullmatch(part):
            yield line, part
        line += part.count("\n")
        position = start


def _compose(text: str, where: str, first: int) -> list[Document]:
    """Reads the documents of one part (one, or more that `...` ends), which starts on line `first`, from 0."""
    unprintable = _UNPRINTABLE.search(text)
    if unprintable:
        line = first + text.count("\n", 0, unprintable.start()) + 1
        what = f"character {ord(unprintable[0]):#06x} is not allowed"
        raise _Unreadable(what, line, "is this a text file? Write the character as an escape in double quotes")
    documents: list[Document] = []
    composer = _Composer(where, first)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            composer.feed(event)
            if isinstance(event, yaml.DocumentEndEvent):
                documents += composer.documents()
                composer = _Composer(where, first)  # anchors end with their document
    except yaml.MarkedYAMLError as error:
        raise _explained(error, first, composer.bracket) from error
    except yaml.YAMLError as error:
        raise _Unreadable(str(error), first + 1, "") from error
    return documents


class _Open:
    """A list or mapping that is being read: what was read of it, and the key that waits for its value."""

    def __init__(self, line: int, anchor: str | None, *, is_mapping: bool, is_bracket: bool) -> None:
        self.line, self.anchor, self.is_mapping, self.is_bracket = line, anchor, is_mapping, is_bracket
        self.children: dict[Step, tuple[int, Node]] = {}
        self.merged: list[Node] = []
        self.key: tuple[str, int, bool] | None = None  # text, line, whether it is a plain `<<`
        self.depth = self.size = 1

    def step(self) -> FieldPath:
        """Returns where the next value goes; nothing while a mapping waits for its next key."""
        if not self.is_mapping:
            return (len(self.children),)
        return (self.key[0],) if self.key else ()

    def close(self) -> Node:
        children = self.children
        for merged in self.merged:
            children = {**merged.children, **children}
        values = {step: node.value for step, (_, node) in children.items()}
        value = values if self.is_mapping else list(values.values())
        return Node(value, children, self.size, self.depth)


class _Composer:
    """Builds the tree of one document from parser events."""

    def __init__(self, where: str, first: int) -> None:
        self._where, self._first = where, first
        self._open: list[_Open] = []
        self._anchors: dict[str, Node | None] = {}  # None while the anchored value is still open
        self._root: tuple[int, Node] | None = None
        self._flaws: list[Finding] = []

    def documents(self) -> list[Document]:
        """Returns the document, once it has ended; none if it is empty."""
        if self._root is None or self._root[1].value is None:
            return []
        line, node = self._root
        return [Document(self._where, line, node, tuple(self._flaws))]

    @property
    def bracket(self) -> int | None:
        """The line of the innermost `[` or `{` that is still open."""
        return self._open[-1].line if self._open and self._open[-1].is_bracket else None

    def feed(self, event: yaml.Event) -> None:
        assert event.start_mark is not None  # its type allows for events that no parser made
        line = self._first + event.start_mark.line + 1
        match event:
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._check_tag(event.tag, {"map", "seq"}, line)
                if len(self._open) >= _MAX_DEPTH:
                    self._refuse(line)
                if event.anchor:
                    self._anchors[event.anchor] = None
                is_mapping, is_bracket = isinstance(event, yaml.MappingStartEvent), bool(event.flow_style)
                self._open.append(_Open(line, event.anchor, is_mapping=is_mapping, is_bracket=is_bracket))
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                opened = self._open.pop()
                self._add(opened.close(), opened.line, opened.anchor)
            case yaml.AliasEvent(anchor=str(name)):
                if name not in self._anchors:
                    raise _Unreadable(f"*{name} has no &{name} before it", line, _ANCHORS)
                node = self._anchors[name]
                if node is None:
                    self._flaw(line, f"*{name} would contain itself", _ANCHORS)
                self._add(node or _NULL, line, None)
            case yaml.ScalarEvent():
                self._scalar(event, line)
            case _:
                pass  # starts and ends of stream and document carry no value

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        is_plain = event.implicit[0] or event.tag not in (None, "!", _TAG + "str")
        if self._awaits_key():
            # Keys are text whatever they look like: `80:` and `on:` are the keys "80" and "on", as in JSON.
            if event.anchor:
                self._anchors[event.anchor] = Node(event.value)
            self._key(event.value, line, is_merge=event.implicit[0] and event.value == "<<")
            return
        self._check_tag(event.tag, {"str", "int", "float", "bool", "null"}, line)
        self._add(Node(read_plain(event.value) if is_plain else event.value), line, event.anchor)

    def _awaits_key(self) -> bool:
        return bool(self._open) and self._open[-1].is_mapping and self._open[-1].key is None

    def _key(self, text: str, line: int, *, is_merge: bool) -> None:
        frame = self._open[-1]
        frame.key = (text, line, is_merge)
        if not is_merge and text in frame.children:
            first = frame.children[text][0]
            self._flaw(line, f"`{text}` is written twice, first on line {first}", "keep one of the two")

    def _add(self, node: Node, line: int, anchor: str | None) -> None:
        if anchor:
            self._anchors[anchor] = node
        if not self._open:
            self._root = (line, node)
            return
        frame = self._open[-1]
        frame.size += node.size
        frame.depth = max(frame.depth, node.depth + 1)
        if frame.size > _MAX_SIZE or frame.depth > _MAX_DEPTH:
            self._refuse(line)
        if not frame.is_mapping:
            frame.children[len(frame.children)] = (line, node)
        elif frame.key is None and isinstance(node.value, str):  # an alias of a word
            self._key(node.value, line, is_merge=False)
        elif frame.key is None:
            self._flaw(line, "a list or mapping is used as a key", "keys are text")
            frame.key = ("?", line, False)
        else:
            text, key_line, is_merge = frame.key
            frame.key = None
            if is_merge:
                self._merge(frame, node, line)
            else:
                frame.children.setdefault(text, (key_line, node))

    def _merge(self, frame: _Open, node: Node, line: int) -> None:
        merged = [node] if isinstance(node.value, dict) else [child for _, child in node.children.values()]
        if not merged or not all(isinstance(each.value, dict) for each in merged):
            self._flaw(line, "`<<` takes a mapping or a list of mappings", _ANCHORS)
            return
        frame.merged += merged

    def _check_tag(self, tag: str | None, known: set[str], line: int) -> None:
        if tag not in (None, "!") and tag.removeprefix(_TAG) not in known:
            self._flaw(
                line, f"the tag {tag} is not taken here", "remove it: plain text, numbers, lists and mappings only"
            )

    def _flaw(self, line: int, message: str, hint: str) -> None:
        path = tuple(step for frame in self._open for step in frame.step())
        self._flaws.append(Finding(self._where, line, "", field_text(path), message, hint))

    def _refuse(self, line: int) -> None:
        raise _Unreadable("nested too deeply, or too large after its aliases are followed", line, "split the file")


_NULL = Node(None)
_ANCHORS = "an anchor (&name) stands before its aliases (*name), not around them"
_HINTS = {
    "mapping values are not allowed": "put the value in quotes if it contains ': ', or check the indentation",
    "cannot start any token": "indent with spaces, not tabs; a value that starts with @, ` or % needs quotes",
    "did not find expected key": "check the indentation of this line against the lines above",
    "expected '-' indicator": "list items start with '- ' in one column; a key may not follow them in the same column",
    "could not find expected ':'": "a key is followed by ': '; is a colon missing here or a quote left open above?",
    "unexpected end of stream": "the quote that starts here is never closed",
    "unknown escape": "in double quotes a backslash starts an escape: use single quotes, or write it twice",
    "expected <document start>": "something stands after the end of the document: an extra bracket, or a missing '---'",
}


def _explained(error: yaml.MarkedYAMLError, first: int, bracket: int | None) -> _Unreadable:
    """Puts a parser's error into a finding's words. `bracket` is the line of a bracket that was never closed."""
    problem, context, mark = error.problem or "not YAML", error.context or "", error.problem_mark
    if error.context_mark and ("quoted scalar" in context or "simple key" in context):
        mark = error.context_mark  # where it began says more than where the parser gave up
    line = first + (mark.line if mark else 0) + 1
    hint = next((hint for part, hint in _HINTS.items() if part in problem), "check indentation and quotes here")
    if bracket and "while parsing a flow" in context:
        line, hint = bracket, "close the bracket that is opened here, or separate its items with commas"
    return _Unreadable(f"not YAML: {' '.join(part for part in (problem, context) if part)}", line, hint)
