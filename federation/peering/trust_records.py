"""Documents of the root, statements and grants: as resources of the federation stream and as records in etcd.

    type              resource name        record in etcd              believed of a peer
    TrustBundle       <number>.<hash>      none: the keeper's disk     what a root signed, whoever brings it
    TrustStatement    <cluster>            trust/statements/<cluster>  about itself alone
    Grant             <cluster>            trust/grants/<cluster>      one for this cluster: what the root signed

None of it reaches the picture: what a peer says of its proxies must not change what ours are told.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from federation import names
from federation.etcd import EtcdClient
from federation.peering.checks import Malformed
from federation.xds.resources import Resource, make_resource
from trust.bundle import BundleRefused, TrustBundle, decode_bundle, encode_bundle
from trust.joining import Grant, JoinRefused, decode_grant
from trust.joining import encode as encode_message
from trust.spiffe import ClusterName
from trust.statements import LARGEST as LARGEST_STATEMENT
from trust.statements import HeardStatement, StatementRefused, TrustStatement, decode_statement, encode_statement

MOST_DOCUMENTS = 64
"""Of one member on one stream: each is a rotation's stage that somebody may have missed."""
_LARGEST_GRANT = 512 * 1024  # bytes; one with a thousand introductions has 200,000
_LARGEST_HEARD = LARGEST_STATEMENT + 1024  # bytes: a statement and when it was heard
STATEMENTS_PREFIX = names.statement_key(ClusterName(""))
GRANTS_PREFIX = names.grant_key(ClusterName(""))


def is_trust_record(key: str) -> bool:
    """Says whether an etcd key is that of a statement or a grant."""
    return key.startswith((STATEMENTS_PREFIX, GRANTS_PREFIX))


# On the stream


def document_resources(documents: Sequence[TrustBundle]) -> Mapping[str, Resource]:
    """Returns documents as resources, the newest MOST_DOCUMENTS."""
    made = []
    for document in documents[-MOST_DOCUMENTS:]:
        body = encode_bundle(document)
        made.append(make_resource(_name(document, body), body))
    return {resource.name: resource for resource in made}


def read_document(resource: Resource) -> TrustBundle:
    """Parses a document that a peer told; raises Malformed. What it says is for `trust.bundle` to believe."""
    try:
        document = decode_bundle(resource.body)
    except BundleRefused as error:
        raise Malformed(error.message) from error
    if resource.name != _name(document, resource.body):
        raise Malformed(f"trust bundle {document.sequence} goes by a wrong name")
    return document


def statement_resource(statement: TrustStatement) -> Resource:
    """Returns the own statement as a resource; its version says nothing of when it was made."""
    version = make_resource("", _timeless(statement)).version
    return Resource(name=statement.cluster, version=version, body=encode_statement(statement))


def read_statement(resource: Resource, speaker: ClusterName) -> TrustStatement:
    """Parses what `speaker` says of its trust; raises Malformed."""
    try:
        statement = decode_statement(resource.body)
    except StatementRefused as error:
        raise Malformed(error.message) from error
    if not statement.cluster == resource.name == speaker:
        raise Malformed(f"{speaker} may not speak of the trust of {statement.cluster}")
    return statement


def grant_resource(grant: Grant) -> Resource:
    """Returns a grant as a resource for its addressee."""
    return make_resource(grant.cluster, encode_message(grant))


def read_grant(resource: Resource, addressee: ClusterName) -> Grant:
    """Parses a grant for `addressee` that a peer passed on; raises Malformed."""
    try:
        grant = _decode_grant(resource.body)
    except JoinRefused as error:
        raise Malformed(error.message) from error
    if not grant.cluster == resource.name == addressee:
        raise Malformed(f"the grant is for {grant.cluster}, and this is {addressee}")
    return grant


# In etcd


def heard_statements(records: Mapping[str, bytes]) -> tuple[HeardStatement, ...]:
    """Returns what members said of their trust, by name; `records` are the Replica's own."""
    found = []
    for key in sorted(records):
        cluster = key.removeprefix(STATEMENTS_PREFIX)
        heard = _decode_heard(records[key]) if cluster != key else None
        if heard is not None and heard.statement.cluster == cluster:
            found.append(heard)
    return tuple(found)


def held_statement(records: Mapping[str, bytes], peer: ClusterName) -> HeardStatement | None:
    """Returns what `peer` last said of its trust; `records` are those of the Replica."""
    body = records.get(names.statement_key(peer))
    return _decode_heard(body) if body is not None else None


def encode_heard(statement: TrustStatement, heard: datetime) -> bytes:
    """Prints the record of a statement."""
    return msgspec.json.encode(HeardStatement(statement, heard))


def grants_for(records: Mapping[str, bytes], peer: ClusterName) -> tuple[Grant, ...]:
    """Returns the grants that wait for `peer`; `records` are those of the Replica."""
    body = records.get(names.grant_key(peer))
    grant = _readable_grant(body) if body is not None else None
    return (grant,) if grant is not None and grant.cluster == peer else ()


async def keep_grant(etcd: EtcdClient, grant: Grant) -> None:
    """Keeps a grant until its addressee has it; the newest of each. Raises EtcdUnavailable, EtcdRefused."""
    await etcd.put(names.grant_key(grant.cluster), encode_message(grant))


def delivered_grants(records: Mapping[str, bytes], *, now: datetime) -> tuple[str, ...]:
    """Returns the keys of grants that need not be kept: taken, by the addressee's own word, expired or unreadable."""
    done = []
    for key, body in records.items():
        if not key.startswith(GRANTS_PREFIX):
            continue
        grant = _readable_grant(body)
        if grant is None or names.grant_key(grant.cluster) != key or now >= grant.expires:
            done.append(key)
            continue
        heard = held_statement(records, grant.cluster)
        authorities = heard.statement.authorities if heard else ()
        if any(one.generation >= grant.generation for one in authorities):
            done.append(key)
    return tuple(done)


def _name(document: TrustBundle, body: bytes) -> str:
    return f"{document.sequence}.{hashlib.blake2b(body, digest_size=8).hexdigest()}"


def _timeless(statement: TrustStatement) -> bytes:
    epoch = datetime.fromtimestamp(0, tz=statement.at.tzinfo)
    return encode_statement(msgspec.structs.replace(statement, at=epoch))


def _decode_heard(body: bytes) -> HeardStatement | None:
    try:
        return msgspec.json.decode(body, type=HeardStatement) if len(body) <= _LARGEST_HEARD else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _readable_grant(body: bytes) -> Grant | None:
    try:
        return _decode_grant(body)
    except JoinRefused:
        return None


def _decode_grant(body: bytes) -> Grant:
    if len(body) > _LARGEST_GRANT:
        raise JoinRefused(f"a grant of {len(body)} bytes is too large", "hand over what `isthmus grant` wrote")
    if body.lstrip()[:1] != b"{":  # YAML is for files of people: reading it costs too much for a peer's word
        raise JoinRefused("this is not a grant: it is no JSON", "hand over what `isthmus grant` wrote")
    return decode_grant(body)
