"""Assembly: edits in any order lead to what a listing gives; a broken object is not lost and disturbs no other."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from federation.model import Service, Severity
from federation.snapshot import EMPTY, Change, Replace, Section, Snapshot, apply
from federation.sources.assembly import NOTHING, Assembly, assemble, changes, listing
from federation.sources.objects import Kind, ObjectKey, Reading, read_objects
from tests.support.manifests import EXPORT, POD, SERVICE
from trust.spiffe import Namespace

SHOP = Namespace("shop")
CART = ObjectKey(Kind.SERVICE, SHOP, "cart")


def service(name: str, port: object = 80) -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n"
        f"spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: {port}}}]}}\n"
    )


def export(name: str) -> str:
    return (
        f"apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: {name}, namespace: shop}}\n"
    )


def pod(name: str, ready: bool) -> str:
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: cart}}}}\n"
        f"spec: {{containers: []}}\nstatus: {{podIP: 10.0.0.1, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
    )


SOUND = st.one_of(
    st.builds(service, st.sampled_from(["cart", "pay"]), st.sampled_from([80, 81, 82])),
    st.builds(export, st.sampled_from(["cart", "pay"])),
    st.builds(pod, st.sampled_from(["cart-1", "cart-2"]), st.booleans()),
)
BROKEN = st.one_of(
    st.builds(service, st.sampled_from(["cart", "pay"]), st.just("x")),
    st.sampled_from(["a: [\n", "kind: Service\n", "apiVersion: v1\nkind: Servce\nmetadata: {name: cart}\n", "- x\n"]),
)


def files(documents: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(documents, max_size=3).map("---\n".join)


WHERE = st.sampled_from(["a.yaml", "b.yaml", "c.yaml"])
EDITS = st.lists(st.tuples(WHERE, files(SOUND | BROKEN) | st.none()), max_size=8)  # None deletes the file


def after(
    edits: list[tuple[str, str | None]], start: tuple[Mapping[str, Reading], Assembly] = ({}, NOTHING)
) -> tuple[dict[str, Reading], Assembly]:
    """Makes the edits one by one, as the watcher would see them."""
    readings, assembly = dict(start[0]), start[1]
    for where, text in edits:
        if text is None:
            readings.pop(where, None)
        else:
            readings[where] = read_objects(text, where)
        assembly = assemble(readings, assembly)
    return readings, assembly


@given(EDITS, st.dictionaries(WHERE, files(SOUND), max_size=3), st.randoms(use_true_random=False))
def test_edits_in_any_order_give_the_same_as_a_listing(
    edits: list[tuple[str, str | None]], final: dict[str, str], random: object
) -> None:
    ends: list[tuple[str, str | None]] = [(where, final.get(where)) for where in ("a.yaml", "b.yaml", "c.yaml")]
    random.shuffle(ends)  # type: ignore[attr-defined] # hypothesis' random.Random
    _, assembly = after([*edits, *ends])
    assert assembly == assemble({where: read_objects(text, where) for where, text in final.items()})


@given(EDITS)
def test_every_sound_object_counts_whatever_else_is_broken(edits: list[tuple[str, str | None]]) -> None:
    readings, assembly = after(edits)
    fresh = assemble(readings)
    assert fresh.in_force.items() <= assembly.in_force.items()
    kept = assembly.in_force.keys() - fresh.in_force.keys()
    named = {read.key for reading in readings.values() for read in reading.objects}
    is_whole = all(reading.is_complete for reading in readings.values())
    assert not is_whole or kept <= named
    errors = [
        {(where, each) for where, found in one.findings.items() for each in found if each.severity is Severity.ERROR}
        for one in (fresh, assembly)
    ]
    assert errors[0] == errors[1] or kept


@given(EDITS)
def test_the_changes_lead_to_the_picture_of_the_listing(edits: list[tuple[str, str | None]]) -> None:
    snapshot: Snapshot = EMPTY
    readings: dict[str, Reading] = {}
    assembly = NOTHING
    for edit in edits:
        readings, following = after([edit], (readings, assembly))
        differences = changes(assembly, following)
        assert (differences == []) == (listing(assembly) == listing(following)) or any(
            change.section is Section.FINDINGS for change in differences
        )
        snapshot, assembly = apply(snapshot, differences), following
    listed = apply(EMPTY, [Replace(section, values) for section, values in listing(assembly).items()])
    assert (snapshot.services, snapshot.exports, snapshot.pods) == (listed.services, listed.exports, listed.pods)
    assert snapshot.endpoints == listed.endpoints
    assert snapshot.findings == assembly.findings
    assert changes(assembly, assembly) == []


def ports(assembly: Assembly) -> dict[str, int]:
    values = [read.value for read in assembly.in_force.values()]
    return {value.key.name: value.ports[0].number for value in values if isinstance(value, Service)}


def test_a_broken_object_keeps_its_last_good_state_and_the_others_move_on() -> None:
    state = after([("a.yaml", service("cart") + "---\n" + service("pay"))])
    state = after([("a.yaml", service("cart", "x") + "---\n" + service("pay", 81))], state)
    assert ports(state[1]) == {"cart": 80, "pay": 81}
    assert [finding.object for finding in state[1].findings["a.yaml"]] == ["Service shop/cart"]
    state = after([("a.yaml", service("pay", 81))], state)
    assert ports(state[1]) == {"pay": 81}


def test_a_file_that_cannot_be_read_whole_may_still_hold_what_it_held() -> None:
    state = after([("a.yaml", service("cart") + "---\n" + service("pay")), ("b.yaml", service("other"))])
    state = after([("a.yaml", "a: [\n---\n" + service("pay", 81))], state)
    assert ports(state[1]) == {"cart": 80, "pay": 81, "other": 80}
    state = after([("a.yaml", "a: [\n"), ("b.yaml", service("other", 82))], state)
    assert ports(state[1]) == {"cart": 80, "pay": 81, "other": 82}
    state = after([("a.yaml", service("cart", 83))], state)
    assert ports(state[1]) == {"cart": 83, "other": 82}
    state = after([("a.yaml", "a: [\n"), ("a.yaml", None)], state)
    assert ports(state[1]) == {"other": 82}


def test_of_equal_objects_the_first_sound_one_by_path_counts() -> None:
    state = after([("b.yaml", service("cart", 81)), ("a.yaml", service("cart", 80)), ("c.yaml", service("cart", "x"))])
    assert ports(state[1]) == {"cart": 80}
    assert list(state[1].findings) == ["b.yaml", "c.yaml"]
    (duplicate,) = state[1].findings["b.yaml"]
    assert (duplicate.line, duplicate.object, duplicate.severity) == (3, "Service shop/cart", Severity.ERROR)
    assert duplicate.message == "Service shop/cart is also in a.yaml, line 3, and that one counts"
    state = after([("a.yaml", service("cart", "x"))], state)
    assert ports(state[1]) == {"cart": 81}
    state = after([("b.yaml", None)], state)
    assert ports(state[1]) == {"cart": 81}, "the last good state"
    assert {where for where, found in state[1].findings.items() if found} == {"a.yaml", "c.yaml"}
    state = after([("a.yaml", None), ("c.yaml", None)], state)
    assert ports(state[1]) == {}


def test_an_object_that_is_twice_in_one_file_counts_once() -> None:
    _, assembly = after([("a.yaml", service("cart", 80) + "---\n" + service("cart", 81))])
    assert ports(assembly) == {"cart": 80}
    assert [finding.line for finding in assembly.findings["a.yaml"]] == [8]


def test_an_object_that_moves_to_another_file_and_breaks_there_is_kept() -> None:
    readings = {"a.yaml": read_objects(service("cart"), "a.yaml")}
    moved = {"b.yaml": read_objects(service("cart", "x"), "b.yaml")}
    assert ports(assemble(moved, assemble(readings))) == {"cart": 80}


def test_a_service_that_becomes_headless_leaves_the_picture() -> None:
    headless = service("cart").replace("spec: {", "spec: {clusterIP: None, ")
    before, following = after([("a.yaml", service("cart"))])[1], after([("a.yaml", headless)])[1]
    assert Change(Section.SERVICES, CART_KEY, None) in changes(before, following)


CART_KEY = next(iter(listing(after([("a.yaml", service("cart"))])[1])[Section.SERVICES]))


def crossed(*texts: str) -> list[tuple[str, int, str, str]]:
    readings = {f"{n}.yaml": read_objects(text, f"{n}.yaml") for n, text in enumerate(texts)}
    findings = [finding for found in assemble(readings).findings.values() for finding in found]
    return [(each.where, each.line, each.message, each.hint) for each in findings if each.severity is Severity.WARNING]


def test_an_export_without_its_service_is_told() -> None:
    assert crossed(EXPORT, SERVICE) == []
    elsewhere = SERVICE.replace("namespace: shop", "namespace: other")
    ((where, line, message, _),) = crossed(EXPORT, elsewhere)
    assert (where, line) == ("0.yaml", 4)
    assert message == "nothing is exported: there is no Service shop/cart"
    ((_, _, message, hint),) = crossed(EXPORT, SERVICE.replace("port: 80", "port: 0"))
    assert message == "nothing is exported: Service shop/cart has an error"
    assert hint == "see 1.yaml:4"
    found = crossed(EXPORT, SERVICE.replace("type: ClusterIP", "clusterIP: None"))
    assert "nothing is exported: Service shop/cart is left out of the mesh" in [message for _, _, message, _ in found]


def test_a_target_port_that_no_pod_names_is_told() -> None:
    assert crossed(SERVICE, POD) == []
    assert crossed(SERVICE, POD.replace("app: cart", "app: other").replace("name: web", "name: wev")) == []
    ((where, line, message, hint),) = crossed(SERVICE, POD.replace("name: web", "name: webb"))
    assert (where, line) == ("0.yaml", 14)
    assert "named 'web'" in message
    assert "`webb`" in hint
