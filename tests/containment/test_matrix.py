"""A stolen cluster CA speaks for its own cluster alone: all that it can sign, at every door.

`pytest -s tests/containment/test_matrix.py` prints the counts.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from tests.containment.besieged import EAST, Besieged, besieged
from tests.containment.der import Key
from tests.containment.doors import Door, doors_for_clients, doors_for_servers, honest, verdict
from tests.containment.forgeries import forgeries
from tests.containment.thief import Forgery, Thief, odd_keys
from tests.support.control import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_LURES = 240
"""More than there are forgeries."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Besieged]:
    async with besieged(tmp_path_factory.mktemp("mesh"), _LURES) as world:
        yield world


@pytest.fixture(scope="module")
def keys() -> Mapping[str, Key]:
    return odd_keys()


def forgeries_for(door: Door, mesh: Besieged, keys: Mapping[str, Key]) -> Sequence[Forgery]:
    others = mesh.authorities[door.victim.cluster].certificate
    thief = Thief(mesh.authorities[EAST], door.aim, root=mesh.root, others=others, odd_keys=keys)
    return forgeries(thief)


async def test_no_forgery_is_believed_at_any_door(mesh: Besieged, keys: Mapping[str, Key], tmp_path: Path) -> None:
    table: dict[str, dict[str, str]] = {}
    for door in (*doors_for_clients(mesh), *doors_for_servers(mesh, tmp_path)):
        forgeries = forgeries_for(door, mesh, keys)
        tried = (honest(mesh, door.honest), *forgeries)
        seen = await door.try_all(tried)
        assert seen[0], f"the door does not open for whom it should: {door.name}"
        table[door.name] = {one.name: verdict(door, one, who) for one, who in zip(tried[1:], seen[1:], strict=True)}
        shown = [what for what in table[door.name].values() if what != "not shown"]
        assert len(shown) > 0.9 * len(forgeries), f"the thief hardly gets to try: {door.name}"
        if door.takes_own:
            [sound] = [one.name for one in forgeries if one.is_sound]
            assert table[door.name][sound] == "own slice", door.name
    print("\n" + report(table))
    accepted = [f"{door}: {name}" for door, row in table.items() for name, what in row.items() if what == "ACCEPTED"]
    assert not accepted


def report(table: Mapping[str, Mapping[str, str]]) -> str:
    """Prints the counts by door."""
    kinds = ("refused", "own slice", "ACCEPTED", "not shown")
    lines = [f"{'door':64}" + "".join(f"{kind:>11}" for kind in kinds)]
    total: Counter[str] = Counter()
    for door, row in table.items():
        counts = Counter(row.values())
        total.update(counts)
        lines.append(f"{door:64}" + "".join(f"{counts[kind]:>11}" for kind in kinds))
    lines.append(f"{'all':64}" + "".join(f"{total[kind]:>11}" for kind in kinds))
    shown = sum(total.values()) - total["not shown"]
    return "\n".join([*lines, f"tried {shown}, accepted {total['ACCEPTED']}"])


async def test_a_revoked_cluster_is_refused_even_as_itself(mesh: Besieged, keys: Mapping[str, Key]) -> None:
    async with mesh.control.client() as admin:
        await admin.revoke(EAST, reason="its authority was stolen")
    table: dict[str, dict[str, str]] = {}
    # Whom the thief wants to be makes no difference here: one door of a kind is enough.
    doors = {door.name.partition(", as ")[0]: door for door in doors_for_clients(mesh) if door.takes_own}
    for door in doors.values():
        tried = [one for one in forgeries_for(door, mesh, keys) if one.is_own]
        [sound] = [one for one in tried if one.is_sound]

        async def is_refused(door: Door = door, sound: Forgery = sound) -> bool:
            return not (await door.try_all([sound]))[0]

        await until(is_refused, lambda refused: refused)
        table[door.name] = {
            one.name: verdict(door, one, who) for one, who in zip(tried, await door.try_all(tried), strict=True)
        }
        if door.honest.cluster != EAST:
            assert (await door.try_all([honest(mesh, door.honest)]))[0], f"closed to others, too: {door.name}"
    print("\n" + report(table))
    assert {what for row in table.values() for what in row.values()} == {"refused"}
