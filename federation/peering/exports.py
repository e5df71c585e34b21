"""What members tell each other: how it is made from the picture, printed, parsed and judged. Pure.

    picture --offered--> ExportedService --export_resource--> the federation stream --read_export--> the peer's etcd

A peer is believed about itself only. What it says of other members is hearsay: enough to find their gateways.
The same JSON (msgspec) is on the wire and in etcd; unknown fields are skipped, so members of different age understand
each other.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypeVar

import msgspec

from federation.model import (
    EPOCH,
    ClusterSettings,
    Departure,
    Drain,
    ExportedService,
    Freshness,
    MemberCluster,
    ServiceKey,
    ServicePort,
    Severance,
)
from federation.peering.checks import (
    LONGEST_LABEL,
    MOST_DRAINS,
    Malformed,
    check_drain,
    check_endpoints,
    check_gateways,
    check_moment,
    check_ports,
    check_text,
)
from federation.revoked import Revoked
from federation.snapshot import Snapshot
from federation.xds.resources import Resource, make_resource
from trust.spiffe import ClusterName, is_dns_label

MAX_RECORD = 1024 * 1024
"""Bytes of one record. etcd takes requests of 1.5 MiB; a service of 5,000 endpoints needs about 1 MiB."""

LONGEST_VERSION = 64  # characters; ours is a hash of 16

_NUMBERS = range(1 << 63)  # msgspec reads integers of any length, and writes none beyond 64 bits
_LONGEST_CERTIFICATE = 16384  # characters of PEM, as in a grant
_LONGEST_TOLD = 300  # characters of what is shown of a peer's words
_MOST_LABELS = 64  # of a member
_MOST_PLACES = 64  # zones, and gateways, of one member, as in a grant
_T = TypeVar("_T")


class Beat(msgspec.Struct, frozen=True):
    """A sign of life of `cluster`: `count` grows by one a second while its control plane runs."""

    cluster: ClusterName
    count: int


def own_member(
    settings: ClusterSettings, *, certificate: str = "", drains: Iterable[Drain] = (), has_left: bool = False
) -> MemberCluster:
    """Returns the record by which this cluster describes itself; `certificate` is its intermediate (PEM).

    `drains` are those of this cluster that its own admin asked for.
    """
    return MemberCluster(
        name=settings.name,
        network=settings.network,
        region=settings.region,
        gateways=settings.gateways,
        cloud=settings.cloud,
        zones=settings.zones,
        certificate=certificate,
        labels=settings.labels,
        drains=tuple(sorted(drains, key=lambda drain: str(drain.service or ""))),
        has_left=has_left,
    )


def offered(
    snapshot: Snapshot,
    settings: ClusterSettings,
    *,
    before: Mapping[ServiceKey, ExportedService],
    changed_at: datetime,
) -> Mapping[ServiceKey, ExportedService]:
    """Returns what this cluster offers: services that exist and are exported, with their ready endpoints.

    A service without ready endpoints is offered empty: its name stays. Revoked workloads are not offered. What is as in
    `before` stays that very object, the rest is stamped `changed_at`. An export that does not say when it was created
    counts from when it was first offered.
    """
    revoked = Revoked(snapshot.revoked)
    offers = {}
    for key in sorted(snapshot.exports.keys() & snapshot.services.keys()):
        ports = tuple(sorted(_as_seen_by_callers(port) for port in snapshot.services[key].ports))
        endpoints = revoked.spare(snapshot.endpoints.get(key, ()), cluster=settings.name, key=key)
        known = before.get(key)
        since = snapshot.exports[key].created or (_exported_at(known) if known else changed_at)
        if known is None or (known.ports, known.endpoints) != (ports, endpoints):
            offers[key] = ExportedService(settings.name, key, ports, endpoints, changed_at, since)
        elif known.exported_at != since:
            offers[key] = msgspec.structs.replace(known, exported_at=since)
        else:
            offers[key] = known
    return offers


def encode(value: ExportedService | MemberCluster | Freshness | Drain | Severance | Departure | Beat) -> bytes:
    """Prints a record. Equal values have equal bytes."""
    return msgspec.json.encode(value)


def decode_export(body: bytes) -> ExportedService:
    """Parses a record of what a member offers; raises Malformed."""
    return _decode(body, ExportedService)


def decode_member(body: bytes) -> MemberCluster:
    """Parses a record of a member; raises Malformed."""
    return _decode(body, MemberCluster)


def decode_freshness(body: bytes) -> Freshness:
    """Parses a record of when a peer was heard; raises Malformed."""
    freshness = _decode(body, Freshness)
    for moment in (freshness.since, freshness.heard or freshness.since):
        check_moment(moment, "a moment of freshness")
    return freshness


def decode_drain(body: bytes) -> Drain:
    """Parses and judges a record of a drain; raises Malformed."""
    return check_drain(_decode(body, Drain))


def decode_severance(body: bytes) -> Severance:
    """Parses a record of connections that were made to end; raises Malformed."""
    severance = _decode(body, Severance)
    check_moment(severance.at, "a severance's moment")
    return severance


def decode_departure(body: bytes) -> Departure:
    """Parses a record of a member that left; raises Malformed."""
    departure = _decode(body, Departure)
    check_moment(departure.at, "a departure's moment")
    return departure


def export_version(exported: ExportedService) -> str:
    """Returns the version of an offer: of another's, the one it gave; of our own, a hash of what it says.

    Moments are left out: replicas of a control plane see a change at different moments, yet offer the same version, so
    that a peer that comes back to another replica is not sent everything again. `exported_at` travels with the next
    change. What a later edition adds to records must not change the hash either, as long as it says nothing new.
    """
    said = (exported.cluster, exported.key, exported.ports, exported.endpoints)
    return exported.version or make_resource("", msgspec.json.encode(said)).version


def export_resource(exported: ExportedService) -> Resource:
    """Returns an offer as a resource of the federation stream, named `namespace/name`."""
    return Resource(name=str(exported.key), version=export_version(exported), body=encode(exported))


def member_resource(member: MemberCluster) -> Resource:
    """Returns a member's record as a resource of the federation stream, named as the member."""
    return make_resource(member.name, encode(member))


def beat_resource(beat: Beat) -> Resource:
    """Returns a sign of life as a resource of the federation stream, named as the cluster."""
    return make_resource(beat.cluster, encode(beat))


def read_export(name: str, body: bytes, speaker: ClusterName) -> ExportedService:
    """Parses and judges an offer that `speaker` made under the resource name `name`; raises Malformed.

    The result has its ports and endpoints sorted, and no port tells the pods' own ports.
    """
    exported = decode_export(body)
    if exported.cluster != speaker:
        raise Malformed(f"{speaker} may not offer services of {exported.cluster}")
    if str(exported.key) != name:
        raise Malformed(f"the record is about {exported.key}")
    if not (is_dns_label(exported.key.namespace) and is_dns_label(exported.key.name)):
        raise Malformed("namespace and name must be DNS labels")
    check_moment(exported.changed_at, "changed_at")
    check_moment(exported.exported_at, "exported_at")
    if len(exported.version) > LONGEST_VERSION:
        raise Malformed(f"a version of more than {LONGEST_VERSION} characters")
    check_ports(exported.ports)
    return msgspec.structs.replace(
        exported,
        ports=tuple(sorted(_as_seen_by_callers(port) for port in exported.ports)),
        endpoints=tuple(sorted(check_endpoints(exported.endpoints))),
    )


def why_not_taken(exported: ExportedService) -> str:
    """Returns why peers will refuse an offer, by their own judgement; empty when they will take it."""
    try:
        read_export(str(exported.key), encode(exported), exported.cluster)
    except Malformed as error:
        return str(error)
    return ""


def still_true(offered: ExportedService, exported: ExportedService) -> ExportedService:
    """Returns an offer without the endpoints that are no more; the same object when all are."""
    present = set(exported.endpoints)
    endpoints = tuple(one for one in offered.endpoints if one in present)
    return offered if endpoints == offered.endpoints else msgspec.structs.replace(offered, endpoints=endpoints)


def read_member(name: str, body: bytes, speaker: ClusterName) -> MemberCluster:
    """Parses and judges what `speaker` says about the member `name`; raises Malformed.

    About others it is hearsay, and marked so.
    """
    member = decode_member(body)
    if len(member.zones) > _MOST_PLACES or len(member.gateways) > _MOST_PLACES:
        raise Malformed(f"more than {_MOST_PLACES} zones or gateways")
    return msgspec.structs.replace(check_member(name, member), introduced_by="" if member.name == speaker else speaker)


def check_member(name: str, member: MemberCluster) -> MemberCluster:
    """Judges the record of the member `name`, whoever spoke; returns it with each gateway once. Raises Malformed."""
    if member.name != name:
        raise Malformed(f"the record is about {member.name!r}")
    if not is_dns_label(member.name):
        raise Malformed("a cluster's name must be a DNS label")
    if not member.network:
        raise Malformed("the member is on no network")
    for word in (member.network, member.region, member.cloud, *member.zones):
        check_text(word, "the member's network or place")
    if len(member.labels) > _MOST_LABELS or len(member.drains) > MOST_DRAINS:
        raise Malformed(f"more than {_MOST_LABELS} labels or {MOST_DRAINS} drains")
    for label in member.labels:
        for word in label:
            check_text(word, "a label of the member", longest=LONGEST_LABEL)
    for drain in member.drains:
        if check_drain(drain).cluster != member.name:
            raise Malformed(f"{member.name} may not drain {drain.cluster}")
    numbers = (member.wire_version, member.incarnation)
    if any(one not in _NUMBERS for one in numbers) or len(member.certificate) > _LONGEST_CERTIFICATE:
        raise Malformed("the wire version, the incarnation or the certificate cannot be true")
    return msgspec.structs.replace(member, gateways=check_gateways(member.gateways))


def learn(known: MemberCluster | None, said: MemberCluster) -> MemberCluster | None:
    """Returns the record to keep after `said`; None when `known` stands.

    Hearsay never replaces a member's own word, nor the same hearsay of somebody else: each of N members may say it.
    """
    if known is not None and said.introduced_by and (not known.introduced_by or is_the_same_member(known, said)):
        return None
    return None if known == said else said


def is_the_same_member(one: MemberCluster, other: MemberCluster) -> bool:
    """Says whether two records say the same of a member, whoever says it; an edition may not know incarnations."""
    return len({msgspec.structs.replace(each, introduced_by="", incarnation=0) for each in (one, other)}) == 1


def short_line(text: str) -> str:
    """Returns what a peer said as one short line: it ends in logs and terminals."""
    short = text if len(text) <= _LONGEST_TOLD else text[:_LONGEST_TOLD] + "..."
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in short)


def may_pass_on(members: Iterable[MemberCluster]) -> tuple[MemberCluster, ...]:
    """Returns the records that may be told to others: those that their member told us itself.

    Hearsay passed on could go in circles between members that heard different things, for ever.
    """
    return tuple(sorted((member for member in members if not member.introduced_by), key=lambda member: member.name))


def _decode(body: bytes, kind: type[_T]) -> _T:
    if len(body) > MAX_RECORD:
        raise Malformed(f"{len(body)} bytes are more than the {MAX_RECORD} that a record may have")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from error
    except RecursionError as error:
        raise Malformed("the record is nested too deeply") from error


def _exported_at(known: ExportedService) -> datetime:
    # An edition that does not tell since when it exports tells at least when that last changed.
    return known.changed_at if known.exported_at == EPOCH else known.exported_at


def _as_seen_by_callers(port: ServicePort) -> ServicePort:
    return ServicePort(port.number, port.protocol, port.name)
