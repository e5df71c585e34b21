"""What is decided under keys of which nobody tells again, numbered: so that what is restored undoes nothing newer.

    decided/drains/west = 1795334400000000      an order about drains/west, or its end, and the number of that

Replicas write again what an etcd lost that comes back with less than it had. Between that return and the moment at
which a replica sees it, somebody may decide about the very record that the replica is about to restore, and finds
nothing there to change. A number higher than all that the replica has seen tells it that this was decided since.
Numbers grow from one decision to the next; they are microseconds, so that they do so in an emptied etcd too.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from federation import names
from federation.etcd import Delete, EtcdClient, Operation, Put
from federation.model import EPOCH

MOST = 1000
"""Numbers that are kept: those of departures, and the last of others. They matter for as long as a replica may take to
hear of a loss."""
_MOST_DELETES = 50  # etcd takes 128 operations in a transaction
_LONGEST = 18  # digits of a number


async def decide(etcd: EtcdClient, key: str, *operations: Operation) -> None:
    """Does what was decided about the record under `key`; raises EtcdUnavailable, EtcdRefused."""
    await etcd.transact([], [*await numbered(etcd, key), *operations])


async def take_back(etcd: EtcdClient, key: str) -> None:
    """Removes a record in a way that every replica hears of; raises EtcdUnavailable, EtcdRefused.

    To remove what etcd has lost is no event, and it would be written again: so it is there for a moment. Who is about
    to write it again, and has not heard of this yet, finds TAKEN_BACK_KEY changed.
    """
    await etcd.put_if_absent(key, b"")
    # In this order: who hears of the second has heard of the first.
    await decide(etcd, key, Delete(key), Put(names.TAKEN_BACK_KEY, key.encode()))


async def numbered(etcd: EtcdClient, key: str) -> tuple[Operation, ...]:
    """Returns what goes into the transaction of a decision about `key`, before the decision itself.

    Raises EtcdUnavailable, EtcdRefused.
    """
    held = {item.key: number_of(item.key, item.value) for item in (await etcd.list(names.DECIDED_PREFIX)).items}
    number = max((datetime.now(UTC) - EPOCH) // timedelta(microseconds=1), *(one + 1 for one in held.values()), 1)
    mine = names.decided_key(key)
    of_departures = names.decided_key(names.DEPARTURES_PREFIX)
    passing = sorted((one for one in held if one != mine and not one.startswith(of_departures)), key=held.__getitem__)
    too_many = passing[: max(0, len(passing) - MOST)][:_MOST_DELETES]
    return (Put(mine, str(number).encode()), *map(Delete, too_many))


def number_of(key: str, body: bytes | None) -> int:
    """Returns the number of a decision by its record; 0 for what is none."""
    return int(body) if body and is_decision(key) and len(body) <= _LONGEST and body.isdigit() else 0


def decided_since(records: Mapping[str, bytes], number: int) -> frozenset[str]:
    """Returns the keys of the records about which something was decided after `number`."""
    return frozenset(
        names.ETCD_PREFIX + key.removeprefix(names.DECIDED_PREFIX)
        for key, body in records.items()
        if number_of(key, body) > number
    )


def is_decision(key: str) -> bool:
    """Says whether an etcd key is that of a decision's number."""
    return key.startswith(names.DECIDED_PREFIX)
