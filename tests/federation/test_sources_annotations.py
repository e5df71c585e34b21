"""Annotations: what is exported to whom, and what callers want of silent members; and what is wrong with them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.model import MemberSelector, ServiceExport, ServiceKey, ServicePolicy, Severity, WhenStale
from federation.snapshot import Section
from federation.sources.annotations import parse_label
from federation.sources.assembly import NOTHING, Assembly, assemble, listing
from federation.sources.objects import read_objects
from federation.spans import InvalidSpan, parse_span, print_span
from tests.support.manifests import EXPORT, SERVICE
from trust.spiffe import Namespace

CART = ServiceKey(Namespace("shop"), "cart")
IMPORT = EXPORT.replace("ServiceExport", "ServiceImport")


def annotated(text: str, **annotations: str) -> str:
    lines = "".join(f"    isthmus.dev/{name.replace('_', '-')}: {value}\n" for name, value in annotations.items())
    return text.replace("metadata:\n", f"metadata:\n  annotations:\n{lines}", 1)


def assembled(*texts: str, before: Assembly = NOTHING) -> Assembly:
    return assemble({f"{n}.yaml": read_objects(text, f"{n}.yaml") for n, text in enumerate(texts)}, before)


def policy(*texts: str, before: Assembly = NOTHING) -> object:
    return listing(assembled(*texts, before=before))[Section.POLICIES].get(CART)


def problems(assembly: Assembly) -> list[tuple[Severity, str, str]]:
    return [(each.severity, each.message, each.hint) for found in assembly.findings.values() for each in found]


def test_an_export_is_for_whom_it_says_and_since_when_it_was_created() -> None:
    text = annotated(EXPORT, export_to='"west, tier=gold,topology.kubernetes.io/region=eu, zero="')
    text = text.replace("metadata:\n", "metadata:\n  creationTimestamp: 2026-01-31T12:00:00+02:00\n")
    (read,) = read_objects(text, "a.yaml").objects
    assert read.findings == ()
    assert read.value == ServiceExport(
        CART,
        export_to=(
            MemberSelector(label="tier", value="gold"),
            MemberSelector(label="topology.kubernetes.io/region", value="eu"),
            MemberSelector(label="zero"),
            MemberSelector(name="west"),
        ),
        created=datetime(2026, 1, 31, 10, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('""', "the value is empty", "leave the annotation out"),
        ('"west,,east"', "nothing between two commas", "leave the annotation out"),
        ("West", "neither the name of a member", "west, tier=gold"),
        ('"a b=c"', "not the name of a label", "label=value"),
        ('"tier=gold silver"', "not the value of a label", "label=value"),
        ("5", "expected text", "quotes"),
    ],
)
def test_an_export_that_does_not_say_clearly_whom_it_is_for_is_for_nobody(text: str, message: str, hint: str) -> None:
    found = assembled(annotated(EXPORT, export_to=text), SERVICE)
    assert listing(found)[Section.EXPORTS] == {}
    (severity, said, hinted) = problems(found)[0]
    assert severity is Severity.ERROR
    assert message in said
    assert hint in hinted


def test_a_broken_export_is_still_for_those_it_was_for() -> None:
    before = assembled(annotated(EXPORT, export_to="west"), SERVICE)
    after = assembled(annotated(EXPORT, export_to='"west,"'), SERVICE, before=before)
    assert listing(after) == listing(before)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"when_stale": "keep"}, ServicePolicy()),
        ({"when_stale": "prefer-local"}, ServicePolicy(WhenStale.PREFER_LOCAL)),
        ({"when_stale": "drop-after=30s"}, ServicePolicy(WhenStale.DROP, timedelta(seconds=30))),
        ({"when_stale": "drop-after = 1.5m"}, ServicePolicy(WhenStale.DROP, timedelta(seconds=90))),
        ({"member_weights": "west=10, east=90"}, ServicePolicy(weights=(("east", 90), ("west", 10)))),
        ({"member_weights": "west=1,east=0"}, ServicePolicy(weights=(("east", 0), ("west", 1)))),
    ],
)
@pytest.mark.parametrize("text", [SERVICE, IMPORT])
def test_a_service_and_its_import_say_what_callers_want(
    text: str, annotations: dict[str, str], expected: ServicePolicy
) -> None:
    found = assembled(annotated(text, **annotations))
    assert problems(found) == []
    assert listing(found)[Section.POLICIES] == {CART: expected}


@pytest.mark.parametrize(
    ("name", "text", "message", "hint"),
    [
        ("when_stale", "kepe", "'kepe' is not known", "did you mean `keep`?"),
        ("when_stale", "prefer_local", "is not known", "did you mean `prefer-local`?"),
        ("when_stale", "drop=30s", "'drop' is not known", "did you mean `drop-after`?"),
        ("when_stale", "drop-after", "no span of time", "drop-after=30s"),
        ("when_stale", "drop-after=soon", "no span of time", "drop-after=30s"),
        ("when_stale", "drop-after=1s", "too short", "at least 2s"),
        ("when_stale", "keep=5s", "takes no value", "drop-after=30s"),
        ("when_stale", '""', "the value is empty", "leave the annotation out"),
        ("when_stale", "7", "expected text", "quotes"),
        ("member_weights", "east", "has no weight", "east=90"),
        ("member_weights", "east=1001", "'1001' is not a weight", "east=90"),
        ("member_weights", "east=-1", "'-1' is not a weight", "east=90"),
        ("member_weights", "east=9%", "'9%' is not a weight", "east=90"),
        ("member_weights", '"east=1,east=2"', "east is here twice", "keep one"),
        ("member_weights", '"east=0,west=0"', "nobody would be called", "1 or more"),
        ("member_weights", "East=5", "is not the name of a member", "east=90"),
        ("member_weights", '" "', "the value is empty", "leave the annotation out"),
    ],
)
def test_what_is_wrong_with_a_wish_is_told_and_the_service_goes_on(
    name: str, text: str, message: str, hint: str
) -> None:
    found = assembled(annotated(SERVICE, **{name: text}))
    assert CART in listing(found)[Section.SERVICES]
    assert listing(found)[Section.POLICIES] == {}
    ((severity, said, hinted),) = problems(found)
    assert severity is Severity.ERROR
    assert message in said
    assert hint in hinted


def test_a_broken_wish_leaves_the_last_good_one_in_force_and_the_rest_of_the_object_follows() -> None:
    before = assembled(annotated(SERVICE, when_stale="drop-after=30s"))
    after = assembled(annotated(SERVICE, when_stale="drop-after=").replace("port: 5432", "port: 5433"), before=before)
    assert listing(after)[Section.POLICIES] == listing(before)[Section.POLICIES] != {}
    assert listing(after)[Section.SERVICES] != listing(before)[Section.SERVICES]
    assert policy(SERVICE, before=after) is None


def test_the_import_has_the_last_word_and_a_contradiction_is_told() -> None:
    service = annotated(SERVICE, when_stale="keep", member_weights="east=1")
    found = assembled(service, annotated(IMPORT, when_stale="drop-after=9s"))
    assert listing(found)[Section.POLICIES][CART] == ServicePolicy(WhenStale.DROP, timedelta(seconds=9), (("east", 1),))
    ((severity, said, _),) = problems(found)
    assert severity is Severity.WARNING
    assert "says keep, and this says drop-after=9s" in said


def test_what_the_spec_of_an_import_says_is_none_of_our_business() -> None:
    text = IMPORT + "spec:\n  type: ClusterSetIP\n  ports: [{port: 80}]\n  ips: [10.0.0.1]\n"
    assert problems(assembled(text)) == []


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (annotated(EXPORT, when_stale="keep"), "no effect on a ServiceExport", "ServiceImport or the Service"),
        (annotated(SERVICE, export_to="west"), "no effect on a Service", "the ServiceExport"),
        (annotated(SERVICE, when_stales="keep"), "is not known", "did you mean `isthmus.dev/when-stale`?"),
        (annotated(EXPORT, export_to="isthmus.dev/netwrok=a"), "by itself", "`isthmus.dev/network`"),
        (annotated(EXPORT, export_to='"west,west"'), "here twice", "keep one"),
        (EXPORT.replace("metadata:\n", "metadata:\n  creationTimestamp: now\n"), "not a moment", "2026"),
    ],
)
def test_slips_that_do_no_harm_are_warnings(text: str, message: str, hint: str) -> None:
    (read,) = read_objects(text, "a.yaml").objects
    assert not read.is_broken
    (finding,) = read.findings
    assert finding.severity is Severity.WARNING
    assert message in finding.message
    assert hint in finding.hint


@given(st.integers(min_value=0, max_value=10**12))
def test_a_span_survives_print_and_parse(milliseconds: int) -> None:
    span = timedelta(milliseconds=milliseconds)
    assert parse_span(print_span(span)) == span


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 y", "1e3s", "5s5s", "0x5s", "9" * 15 + "d"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(InvalidSpan):
        parse_span(text)


@pytest.mark.parametrize("text", ["a", "=b", "-a=b", "a=b c", "a/=b", "A/a=b", "a/b/c=d", "a" * 64 + "=b"])
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(ValueError, match="label"):
        parse_label(text)
