"""The shared records in etcd: where each belongs in the picture, and how many are written.

members/<cluster>                      a MemberCluster          picture: members
exports/<cluster>/<namespace>/<name>   an ExportedService       picture: imports, if it is of another cluster
freshness/<cluster>                    a Freshness              picture: freshness
drains/<cluster>[/<namespace>/<name>]  a Drain                  picture: drains, those of the own admin
severances/<cluster>[/<ns>/<name>]     a Severance              picture: severances
departures/<cluster>                   a Departure              picture: departures
revocations/<subject>                  a Revocation             picture: revocations, those of the own admin
trust/statements/<cluster>             a HeardStatement         none (see trust_records)
trust/grants/<cluster>                 a Grant                  none
decided/<the rest of a key>            a number                 none (see decisions)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from federation import names
from federation.etcd import (
    Condition,
    Delete,
    EtcdClient,
    EtcdRefused,
    EtcdUnavailable,
    Fenced,
    Get,
    Guard,
    KeyValue,
    Operation,
    Put,
    Unchanged,
)
from federation.model import MemberCluster
from federation.peering import exports
from federation.peering.checks import Malformed
from federation.snapshot import Section
from trust.bundle import BundleRefused, Revocation, parse_subject
from trust.spiffe import ClusterName, InvalidName

_MAX_OPERATIONS = 100  # etcd takes 128 in a transaction
_MAX_BYTES = exports.MAX_RECORD + 64 * 1024  # etcd takes 1.5 MiB in a request: one record of any size, or many small

_ATTEMPTS = 5  # of writing a record that another replica writes at the same moment


class Place(NamedTuple):
    """Where a record belongs in the picture: the key of its value there. `cluster` is empty for none of a cluster."""

    section: Section
    cluster: ClusterName
    key: object


def place_of(key: str) -> Place | None:
    """Returns the place of an etcd key; None for keys that are no such records."""
    if key.startswith(names.REVOCATIONS_PREFIX):
        return Place(Section.REVOCATIONS, ClusterName(""), key.removeprefix(names.REVOCATIONS_PREFIX))
    try:
        parsed = names.parse_etcd_key(key)
    except InvalidName:
        return None
    match parsed:
        case ("members", cluster, None):
            return Place(Section.MEMBERS, cluster, cluster)
        case ("freshness", cluster, None):
            return Place(Section.FRESHNESS, cluster, cluster)
        case ("exports", cluster, service):
            return Place(Section.IMPORTS, cluster, (cluster, service))
        case ("drains", cluster, service):
            return Place(Section.DRAINS, cluster, (cluster, service))
        case ("severances", cluster, service):
            return Place(Section.SEVERANCES, cluster, (cluster, service))
        case ("departures", cluster, None):
            return Place(Section.DEPARTURES, cluster, cluster)
        case _:
            return None


def read_record(key: str, body: bytes) -> object:
    """Returns the value of the record under `key`, which must be about what the key names; raises Malformed."""
    if key.startswith(names.REVOCATIONS_PREFIX):
        return _read_revocation(key, body)
    match names.parse_etcd_key(key):
        case ("members", cluster, None):
            return exports.check_member(cluster, exports.decode_member(body))
        case ("freshness", _, None):
            return exports.decode_freshness(body)
        case ("exports", cluster, service):
            return exports.read_export(str(service), body, cluster)
        case ("drains", cluster, service):
            drain = exports.decode_drain(body)
            if (drain.cluster, drain.service) != (cluster, service):
                raise Malformed(f"the record is about {drain.cluster!r} and {drain.service}")
            return drain
        case ("severances", cluster, service):
            severance = exports.decode_severance(body)
            if (severance.cluster, severance.service) != (cluster, service):
                raise Malformed(f"the record is about {severance.cluster!r} and {severance.service}")
            return severance
        case ("departures", cluster, None):
            departure = exports.decode_departure(body)
            if departure.cluster != cluster:
                raise Malformed(f"the record is about {departure.cluster!r}")
            return departure
        case _:
            raise Malformed("no record is kept under this key")


class PartlyRefused(EtcdRefused):
    """etcd will not take some records, now or later; the others are written. `refused` says why, by key."""

    def __init__(self, refused: Mapping[str, str]) -> None:
        key, reason = next(iter(refused.items()))
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        super().__init__(f"{key}: {reason}{more}")
        self.refused = refused


class Lost(NamedTuple):
    """What etcd held under a key before it lost data (None: nothing), and what it was found to hold instead.

    `revision` is that of the write of what was found; 0 for nothing.
    """

    body: bytes | None
    found: bytes | None
    revision: int = 0


async def write_records(
    etcd: EtcdClient, guard: Guard, *, puts: Mapping[str, bytes], deletes: Sequence[str] = ()
) -> int:
    """Writes and removes records, many in one request, and returns the revision of the last.

    Raises Fenced when the guard does not hold, EtcdUnavailable; then some may have been written. Raises PartlyRefused
    when all others are.
    """
    return await _write_all(etcd, puts, deletes, conditions=lambda batch: [guard])


async def restore_records(etcd: EtcdClient, guard: Guard, lost: Mapping[str, Lost], *, taken_back: int) -> int:
    """Writes again, or removes again, what etcd has lost, and returns the revision of the last write; 0 for none.

    Nobody is overwritten, and nothing that was taken back returns: a request of which any record was written since it
    was found lost, or that was made before TAKEN_BACK_KEY was last written (`taken_back`: its revision, as seen with
    `lost`), does nothing. Then there is news to come, and what is still lost is to be asked for again. Raises as
    `write_records` does.
    """

    def conditions(batch: Sequence[Operation]) -> list[Condition]:
        as_found = [Unchanged(operation.key, lost[operation.key].revision) for operation in batch]
        return [guard, Unchanged(names.TAKEN_BACK_KEY, taken_back), *as_found]

    puts = {key: one.body for key, one in lost.items() if one.body is not None}
    deletes = [key for key, one in lost.items() if one.body is None]
    return await _write_all(etcd, puts, deletes, conditions=conditions)


async def _write_all(
    etcd: EtcdClient,
    puts: Mapping[str, bytes],
    deletes: Sequence[str],
    *,
    conditions: Callable[[Sequence[Operation]], Sequence[Condition]],
) -> int:
    revision = 0
    refused: dict[str, str] = {}
    for batch in _batches(puts, deletes):
        try:
            revision = await _write(etcd, conditions(batch), batch) or revision
        except EtcdRefused:
            for operation in batch:  # one that is too large must not hold back the others
                try:
                    revision = await _write(etcd, conditions([operation]), [operation]) or revision
                except EtcdRefused as error:
                    refused[operation.key] = str(error)
    if refused:
        raise PartlyRefused(refused)
    return revision


async def _write(etcd: EtcdClient, conditions: Sequence[Condition], operations: Sequence[Operation]) -> int:
    """Returns the revision of the write, 0 if a condition does not hold; raises Fenced if it is a guard."""
    guards = [condition for condition in conditions if isinstance(condition, Guard)]
    outcome = await etcd.transact(conditions, operations, [Get(guard.key) for guard in guards])
    if outcome.succeeded:
        return outcome.revision
    for guard, found in zip(guards, outcome.found, strict=True):
        if not _holds(guard, found):
            raise Fenced(f"somebody else leads: {guard.key} was written by another")
    return 0


async def keep_member(etcd: EtcdClient, said: MemberCluster, *, guard: Guard | None = None) -> bool:
    """Writes what was said of a member, if it is news (`exports.learn`), and returns whether it was.

    Raises Fenced when the guard does not hold, EtcdUnavailable, EtcdRefused.
    """
    key = names.member_key(said.name)
    for _ in range(_ATTEMPTS):
        held = await etcd.get(key)
        record = exports.learn(_member_or_nothing(held), said)
        if record is None:
            return False
        unchanged = Unchanged(key, held.mod_revision if held else 0)
        conditions: list[Condition] = [unchanged, *((guard,) if guard else ())]
        outcome = await etcd.transact(
            conditions, [Put(key, exports.encode(record))], [Get(guard.key if guard else key)]
        )
        if outcome.succeeded:
            return True
        if guard is not None and not _holds(guard, outcome.found[0]):
            raise Fenced(f"somebody else leads: {guard.key} was written by another")
    raise EtcdUnavailable(f"{key} is written by others all the time")


def encode_revocation(revocation: Revocation) -> bytes:
    """Prints the record of a revocation that this cluster decided on."""
    return msgspec.json.encode(revocation)


def _read_revocation(key: str, body: bytes) -> Revocation:
    try:
        revocation = msgspec.json.decode(body, type=Revocation)
        parse_subject(revocation.subject)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BundleRefused) as error:
        raise Malformed(str(error)) from error
    if names.revocation_key(revocation.subject) != key:
        raise Malformed(f"the record is about {revocation.subject!r}")
    return revocation


def _member_or_nothing(held: KeyValue | None) -> MemberCluster | None:
    try:
        return exports.decode_member(held.value) if held else None
    except Malformed:
        return None  # what nobody can read is replaced by anything that can be read


def _holds(guard: Guard, found: KeyValue | None) -> bool:
    return guard.create_revision == (found.create_revision if found else 0)


def _batches(puts: Mapping[str, bytes], deletes: Sequence[str]) -> Iterator[list[Operation]]:
    # Apart from each other: an etcd that is full takes no writes, but may still remove.
    yield from _of_one_kind([Delete(key) for key in deletes])
    yield from _of_one_kind([Put(key, value) for key, value in puts.items()])


def _of_one_kind(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    batch: list[Operation] = []
    size = 0
    for operation in operations:
        weight = len(operation.key) + (len(operation.value) if isinstance(operation, Put) else 0)
        if batch and (len(batch) == _MAX_OPERATIONS or size + weight > _MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(operation)
        size += weight
    if batch:
        yield batch
