"""Documents: values as they were written, the line of each, and a broken document that costs only itself."""

import json
from typing import Annotated, Literal

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from federation.model import Severity
from federation.sources.documents import Document, FieldPath, convert, field_text, load_documents
from federation.sources.scalars import read_plain

WORDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.sampled_from("äß€字😀"), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
VALUES = st.dictionaries(
    WORDS, st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))
)


def only(text: str) -> Document:
    documents, findings = load_documents(text, "some.yaml")
    assert not findings
    assert len(documents) == 1
    return documents[0]


@given(VALUES)
def test_json_is_read_as_it_was_written(value: dict[str, object]) -> None:
    assert only(json.dumps(value, ensure_ascii=False, indent=2)).value == value


@given(VALUES, st.booleans())
def test_yaml_is_read_as_it_was_written(value: dict[str, object], flow: bool) -> None:
    text = yaml.safe_dump(value, default_style='"', default_flow_style=flow, allow_unicode=True)
    assert only(text).value == value


@st.composite
def numbered(draw: st.DrawFn) -> tuple[dict[str, object], list[FieldPath]]:
    """A tree whose keys and leaves are unlike each other, and the paths of all its keys."""
    paths: list[FieldPath] = []

    def mapping(path: FieldPath, depth: int) -> dict[str, object]:
        made: dict[str, object] = {}
        for _ in range(draw(st.integers(1, 3))):
            name = f"key{len(paths)}_"
            paths.append((*path, name))
            made[name] = value((*path, name), depth - 1)
        return made

    def value(path: FieldPath, depth: int) -> object:
        match draw(st.sampled_from(["leaf", "mapping", "list"])) if depth else "leaf":
            case "mapping":
                return mapping(path, depth)
            case "list":
                return [mapping((*path, index), depth - 1) for index in range(draw(st.integers(1, 2))) if depth > 1]
            case _:
                return "text\nof lines"

    return mapping((), 4), paths


@given(numbered(), st.integers(0, 3), st.sampled_from(["|", '"', None]))
def test_every_key_is_on_the_line_that_is_told(
    tree: tuple[dict[str, object], list[FieldPath]], before: int, style: str | None
) -> None:
    value, paths = tree
    text = "# a comment\n" * before + "---\n" + yaml.safe_dump(value, default_style=style) + "---\nother: document\n"
    document = load_documents(text, "some.yaml")[0][0]
    for path in paths:
        line = text.splitlines()[document.line(path) - 1]
        assert str(path[-1]) in line, (path, text)


def test_a_path_that_does_not_exist_has_the_line_of_its_nearest_ancestor() -> None:
    document = only("\nspec:\n  ports:\n    - port: 80\n    - name: b\n")
    assert document.line() == 2
    assert document.line(("spec", "ports", 0, "port")) == 4
    assert document.line(("spec", "ports", 1)) == 5
    assert document.line(("spec", "ports", 1, "port")) == 5
    assert document.line(("spec", "ports", 7, "port")) == 3
    assert document.line(("status",)) == 2


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("", None),
        ("~", None),
        ("None", "None"),
        ("on", True),
        ("No", False),
        ("y", "y"),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 15),
        ("-5", -5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("12:30", "12:30"),
        ("2024-05-01", "2024-05-01"),
        ("1.2.3", "1.2.3"),
        ("1_000", "1_000"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_plain_word_means_what_it_means_in_kubernetes(word: str, value: object) -> None:
    assert read_plain(word) == value


def test_keys_are_text_and_aliases_and_merges_are_followed() -> None:
    document = only("base: &b {p: 1, q: 2}\n80: *b\non:\n  <<: *b\n  q: 5\n")
    assert document.value == {"base": {"p": 1, "q": 2}, "80": {"p": 1, "q": 2}, "on": {"p": 1, "q": 5}}
    assert document.line(("on", "q")) == 5
    assert document.line(("on", "p")) == 1


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("a: b: c", 1, "quotes"),
        ("a:\n\t- x", 2, "spaces, not tabs"),
        ("a: 1\nb: 'open\nc: 2\n", 2, "never closed"),
        ("a:\n  b: 1\n c: 2\n", 3, "indentation"),
        ("a: [1,\n2\nb: 3\n", 1, "close the bracket"),
        ("a: 1\nb\nc: 2\n", 2, "colon"),
        ("a: 1\nb: *x\n", 2, "anchor"),
        ("a: 1\nb: \x01\n", 2, "text file"),
        ("{a: 1}}\n", 1, "extra bracket"),
        ("a: 1\nb: {c: 1,\n\n", 2, "close the bracket"),
        ("[" * 100_000, 1, "split the file"),
    ],
)
def test_what_is_not_yaml_is_told_with_line_and_hint(text: str, line: int, hint: str) -> None:
    documents, findings = load_documents("# first line\n---\n" + text, "some.yaml")
    assert documents == []
    assert [(finding.where, finding.line) for finding in findings] == [("some.yaml", line + 2)]
    assert hint in findings[0].hint
    assert findings[0].severity is Severity.ERROR


def test_aliases_that_ask_for_billions_are_refused() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    documents, findings = load_documents(text, "some.yaml")
    assert documents == []
    assert "too large" in findings[0].message


def test_a_broken_document_costs_only_itself() -> None:
    text = "%YAML 1.1\n---\na: 1\n---\nb: [\n--- # a comment\n\n---\nc: |\n  text\n  --- no marker\n...\n---\nd: 4\n"
    documents, findings = load_documents(text, "some.yaml")
    assert [document.value for document in documents] == [{"a": 1}, {"c": "text\n--- no marker\n"}, {"d": 4}]
    assert [document.line() for document in documents] == [3, 9, 14]
    assert [finding.line for finding in findings] == [5]


def test_empty_documents_are_left_out() -> None:
    assert load_documents("", "x") == ([], [])
    assert load_documents("# nothing\n---\n---\n~\n---\nnull\n", "x") == ([], [])


@pytest.mark.parametrize(
    ("text", "line", "field", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a", "written twice, first on line 1"),
        ("x:\n- {p: 1, p: 2}\n", 2, "x[0].p", "written twice"),
        ("x: !secret y\n", 1, "x", "tag !secret"),
        ("x: &a [*a]\n", 1, "x[0]", "contain itself"),
        ("x:\n  <<: 3\n", 2, "x", "takes a mapping"),
        ("? [1]\n: 2\n", 1, "", "used as a key"),
    ],
)
def test_flaws_are_told_and_what_has_flaws_does_not_convert(text: str, line: int, field: str, message: str) -> None:
    document = only(text)
    assert len(document.flaws) == 1
    flaw = document.flaws[0]
    assert (flaw.line, flaw.field) == (line, field)
    assert message in flaw.message
    assert convert(document, dict[str, object]) == (None, [flaw])


class Link(msgspec.Struct, forbid_unknown_fields=True):
    to: str
    latency: float = 0


class Cluster(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    replicas: int | dict[str, int] = 1
    zones: tuple[str, ...] = ()
    links: dict[str, Link] = {}
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 80
    kind: Literal["real", "virtual"] = "real"


class Lab(msgspec.Struct, forbid_unknown_fields=True):
    clusters: list[Cluster]


GOOD = """\
clusters:
  - name: east
    replicas: {a: 2, b: 1}
    zones: [a, b]
    links:
      north: {to: west}
      south:
        to: south
        latency: 5
  - name: west
"""


def test_a_document_converts_to_a_type() -> None:
    value, findings = convert(only(GOOD), Lab)
    assert findings == []
    assert value is not None
    assert [cluster.name for cluster in value.clusters] == ["east", "west"]
    part, findings = convert(only(GOOD), Cluster, path=("clusters", 1))
    assert (part, findings) == (Cluster("west"), [])


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "message", "hint"),
    [
        ("name: west", "nmae: west", 10, "clusters[1].nmae", "not known", "did you mean `name`?"),
        ("name: west", "port: 1", 10, "clusters[1].name", "`name` is missing", ""),
        ("name: west", "name: 3", 10, "clusters[1].name", "expected text", "put it in quotes"),
        ("{a: 2, b: 1}", "{a: 2, b: x}", 3, "clusters[0].replicas.b", "expected a whole number", "without quotes"),
        ("latency: 5", "latencies: 5", 9, "clusters[0].links.south.latencies", "not known", "`latency`"),
        ("latency: 5", "colour: 5", 9, "clusters[0].links.south.colour", "not known", "known here: latency, to"),
        ("to: south", "to: [x]", 8, "clusters[0].links.south.to", "expected text, got a list", ""),
        ("zones: [a, b]", "zones: [a, 5]", 4, "clusters[0].zones[1]", "expected text", "put it in quotes"),
        ("zones: [a, b]", "port: 0", 4, "clusters[0].port", "expected a whole number >= 1", ""),
        ("zones: [a, b]", "kind: unreal", 4, "clusters[0].kind", "invalid enum value 'unreal'", ""),
        ("clusters:", "cluster:", 1, "cluster", "not known", "did you mean `clusters`?"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_line_field_and_hint(
    old: str, new: str, line: int, field: str, message: str, hint: str
) -> None:
    assert old in GOOD
    value, findings = convert(only(GOOD.replace(old, new)), Lab, subject="lab")
    assert value is None
    assert [(finding.line, finding.field, finding.object) for finding in findings] == [(line, field, "lab")]
    assert message in findings[0].message
    assert hint in findings[0].hint


def test_a_part_that_does_not_exist_is_missing() -> None:
    value, findings = convert(only(GOOD), Lab, path=("clusters", 0, "lab"))
    assert value is None
    assert (findings[0].line, findings[0].field) == (2, "clusters[0].lab")


def test_a_path_is_printed_as_kubernetes_prints_it() -> None:
    assert field_text(("spec", "ports", 0, "port")) == "spec.ports[0].port"
    assert field_text(("metadata", "labels", "app.kubernetes.io/name")) == "metadata.labels[app.kubernetes.io/name]"
    assert field_text(()) == ""
