"""Requests and grants are read as they were written, and refused when anybody changed a word of them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trust import DOMAIN, EAST, WEST
from trust import certificates, joining
from trust.bundle import TrustBundle, make_bundle
from trust.certificates import load_certificate, make_intermediate, make_root, new_key
from trust.joining import (
    GatewayAddress,
    Grant,
    Introduction,
    JoinRefused,
    JoinRequest,
    check_continuity,
    check_grant,
    check_introduction,
    check_request,
    continue_from,
    decode_grant,
    decode_request,
    make_grant,
    make_join_request,
)
from trust.spiffe import ClusterName, MeshDomain

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
DAY = timedelta(days=1)
ROOT_KEY, KEY = new_key(), new_key()
ROOT = make_root(ROOT_KEY, DOMAIN, now=NOW, lifetime=DAY * 30)

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
words = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20)
gateways = st.builds(
    GatewayAddress,
    address=st.ip_addresses().filter(lambda it: not it.is_unspecified and not it.is_multicast).map(str),
    port=st.integers(min_value=1, max_value=65535),
)
introductions = st.builds(
    Introduction,
    name=labels.map(ClusterName),
    network=words.filter(bool),
    region=words,
    cloud=words,
    zones=st.lists(words, max_size=3).map(tuple),
    gateways=st.lists(gateways, max_size=3).map(tuple),
)
ABOUT = Introduction(
    name=EAST,
    network="east",
    region="eu",
    zones=("a", "b"),
    gateways=(GatewayAddress(address="127.101.0.2", port=15443),),
)


def request_of(about: Introduction = ABOUT) -> JoinRequest:
    return make_join_request(KEY, about, domain=DOMAIN, now=NOW)


def grant_of(request: JoinRequest, *others: Introduction, domain: MeshDomain = DOMAIN) -> Grant:
    intermediate = make_intermediate(
        ROOT,
        ROOT_KEY,
        public_key=KEY.public_key(),
        cluster=request.cluster.name,
        domain=domain,
        now=NOW,
        lifetime=DAY,
    )
    return make_grant(
        request,
        ROOT_KEY,
        certificate=intermediate,
        root=ROOT,
        bundle=bundle_of(ROOT_KEY, ROOT),
        introductions=others,
        expires=NOW + timedelta(hours=1),
    )


def bundle_of(key: ec.EllipticCurvePrivateKey, *roots: x509.Certificate, sequence: int = 1) -> TrustBundle:
    return make_bundle(key, domain=DOMAIN, sequence=sequence, roots=roots, generations={}, revoked=(), now=NOW)


REQUEST = request_of()
GRANT = grant_of(REQUEST, Introduction(name=WEST, network="west", region="us"))


def accept(grant: Grant, request: JoinRequest = REQUEST, now: datetime = NOW) -> None:
    check_grant(grant, request, public_key=KEY.public_key(), now=now)


@given(introductions, st.lists(introductions, max_size=3))
def test_what_was_written_is_read_again_and_good(about: Introduction, others: list[Introduction]) -> None:
    request = request_of(about)
    assert decode_request(joining.encode(request)) == request
    assert decode_request(joining.encode(request).decode()) == request
    assert check_request(request, domain=DOMAIN) == KEY.public_key()
    grant = grant_of(request, *others)
    assert decode_grant(joining.encode(grant)) == grant
    certificate, root = check_grant(grant, request, public_key=KEY.public_key(), now=NOW)
    assert certificate.public_key() == KEY.public_key()
    assert root == ROOT


@given(introductions)
def test_a_file_that_became_yaml_on_its_way_is_as_good(about: Introduction) -> None:
    request = request_of(about)
    assert decode_request(yaml.safe_dump(json.loads(joining.encode(request)), allow_unicode=True)) == request
    assert decode_request(msgspec.yaml.encode(request)) == request
    grant = grant_of(request, about)
    assert decode_grant(msgspec.yaml.encode(grant)) == grant
    accept(decode_grant(msgspec.yaml.encode(grant)), request)


def test_two_requests_differ_in_their_ids() -> None:
    assert request_of().id != request_of().id


def paths(value: Any, before: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    match value:
        case dict():
            return [path for key in value for path in paths(value[key], (*before, key))]
        case list():
            return [path for index, item in enumerate(value) for path in paths(item, (*before, index))]
        case _:
            return [before]


def changed(value: Any, path: tuple[str | int, ...], changed_to: Any) -> Any:
    copy = json.loads(json.dumps(value))
    place = copy
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = changed_to
    return copy


OTHERS = ["other", "0" * 32, "127.9.9.9", "2031-01-01T00:00:00Z", 1, 2, 443, "", "west", "other.test"]


@pytest.mark.parametrize("path", paths(json.loads(joining.encode(REQUEST))))
@pytest.mark.parametrize("other", OTHERS)
def test_a_request_with_one_word_changed_is_refused(path: tuple[str | int, ...], other: object) -> None:
    document = changed(json.loads(joining.encode(REQUEST)), path, other)
    if document == json.loads(joining.encode(REQUEST)):
        return
    with pytest.raises(JoinRefused) as refusal:
        check_request(decode_request(json.dumps(document)), domain=DOMAIN)
    assert refusal.value.hint


@pytest.mark.parametrize("path", paths(json.loads(joining.encode(GRANT))))
@pytest.mark.parametrize("other", OTHERS)
def test_a_grant_with_one_word_changed_is_refused(path: tuple[str | int, ...], other: object) -> None:
    document = changed(json.loads(joining.encode(GRANT)), path, other)
    if document == json.loads(joining.encode(GRANT)):
        return
    with pytest.raises(JoinRefused) as refusal:
        accept(decode_grant(json.dumps(document)))
    assert refusal.value.hint


def test_a_word_may_be_added_by_a_later_version() -> None:
    document = {**json.loads(joining.encode(GRANT)), "later": 1}
    accept(decode_grant(json.dumps(document)))


def test_a_request_for_another_mesh_is_refused() -> None:
    with pytest.raises(JoinRefused, match=r"join the mesh mesh\.test, but this is the root of other\.test"):
        check_request(REQUEST, domain=MeshDomain("other.test"))


def test_a_request_whose_name_is_not_that_of_its_certificate_request_is_refused() -> None:
    mine = msgspec.structs.replace(REQUEST, cluster=msgspec.structs.replace(ABOUT, name=WEST))
    with pytest.raises(JoinRefused, match="not for west"):
        check_request(mine, domain=DOMAIN)


@pytest.mark.parametrize("name", ["", "East", "a.b", "a" * 64, "../etc", "a\n", "a b"])
def test_a_name_that_is_no_cluster_name_is_refused(name: str) -> None:
    with pytest.raises(JoinRefused, match="not a cluster name"):
        request_of(msgspec.structs.replace(ABOUT, name=ClusterName(name)))


def test_a_domain_that_is_none_is_refused() -> None:
    with pytest.raises(JoinRefused, match="not a mesh domain"):
        make_join_request(KEY, ABOUT, domain=MeshDomain("mesh"), now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"network": ""},
        {"region": "eu\x1b[2J"},
        {"region": "x" * 254},
        {"zones": ("a\n",)},
        {"zones": ("a",) * 65},
        {"gateways": (GatewayAddress(address="gateway.east", port=15443),)},
        {"gateways": (GatewayAddress(address="0.0.0.0", port=15443),)},
        {"gateways": (GatewayAddress(address="::", port=15443),)},
        {"gateways": (GatewayAddress(address="224.0.0.1", port=15443),)},
        {"gateways": (GatewayAddress(address="127.1", port=15443),)},
        {"gateways": (GatewayAddress(address="10.0.0.1", port=0),)},
        {"gateways": (GatewayAddress(address="10.0.0.1", port=65536),)},
    ],
)
def test_a_cluster_that_describes_itself_badly_is_refused(change: dict[str, Any]) -> None:
    about = msgspec.structs.replace(ABOUT, **change)
    with pytest.raises(JoinRefused):
        check_introduction(about)
    with pytest.raises(JoinRefused):
        request_of(about)


def test_a_grant_expires() -> None:
    accept(GRANT, now=GRANT.expires - timedelta(microseconds=1))
    with pytest.raises(JoinRefused, match="the grant expired at 2030-01-02 04:04:05 UTC"):
        accept(GRANT, now=GRANT.expires)


def test_a_grant_from_the_future_is_refused() -> None:
    with pytest.raises(JoinRefused, match="not valid before") as refusal:
        accept(GRANT, now=NOW - timedelta(days=1))
    assert "clock" in refusal.value.hint


def test_a_grant_for_another_mesh_cluster_request_or_key_is_refused() -> None:
    other_mesh = make_join_request(KEY, ABOUT, domain=MeshDomain("other.test"), now=NOW)
    with pytest.raises(JoinRefused, match=r"for the mesh mesh\.test, this cluster asked to join other\.test"):
        accept(GRANT, other_mesh)
    with pytest.raises(JoinRefused, match="for the cluster east, this is west"):
        accept(GRANT, request_of(msgspec.structs.replace(ABOUT, name=WEST)))
    with pytest.raises(JoinRefused, match="waits for"):
        accept(GRANT, request_of())
    with pytest.raises(JoinRefused, match="another key"):
        check_grant(GRANT, REQUEST, public_key=new_key().public_key(), now=NOW)


def test_a_grant_whose_certificate_another_root_signed_is_refused() -> None:
    other_key = new_key()
    other_root = make_root(other_key, DOMAIN, now=NOW, lifetime=DAY)
    stolen = make_grant(
        REQUEST,
        other_key,
        certificate=load_certificate(GRANT.certificate.encode()),
        root=other_root,
        bundle=bundle_of(other_key, other_root),
        introductions=(),
        expires=NOW + DAY,
    )
    with pytest.raises(JoinRefused, match="not signed by"):
        accept(stolen)


def test_a_grant_of_a_certificate_wider_than_the_clusters_slice_is_refused() -> None:
    wide = make_intermediate(
        ROOT, ROOT_KEY, public_key=KEY.public_key(), cluster=WEST, domain=DOMAIN, now=NOW, lifetime=DAY
    )
    grant = make_grant(
        REQUEST,
        ROOT_KEY,
        certificate=wide,
        root=ROOT,
        bundle=bundle_of(ROOT_KEY, ROOT),
        introductions=(),
        expires=NOW + DAY,
    )
    with pytest.raises(JoinRefused, match=r"not constrained to east\.mesh\.test"):
        accept(grant)


def test_a_grant_below_a_root_that_is_not_trusted_is_refused() -> None:
    other_key = new_key()
    other = make_root(other_key, DOMAIN, now=NOW, lifetime=DAY * 30)
    held = bundle_of(other_key, other, sequence=7)
    with pytest.raises(JoinRefused, match="a root that is not in the trust bundle 7"):
        check_grant(GRANT, REQUEST, public_key=KEY.public_key(), now=NOW, held=held)
    both = bundle_of(other_key, other, ROOT)
    check_grant(GRANT, REQUEST, public_key=KEY.public_key(), now=NOW, held=both)
    stuffed = make_grant(
        REQUEST,
        ROOT_KEY,
        certificate=load_certificate(GRANT.certificate.encode()),
        root=ROOT,
        bundle=msgspec.structs.replace(both, sequence=9),
        introductions=(),
        expires=NOW + DAY,
    )
    with pytest.raises(JoinRefused, match="not signed by a root that is trusted"):
        accept(stuffed)


def renewal_of(name: ClusterName = EAST) -> JoinRequest:
    about = msgspec.structs.replace(ABOUT, name=name)
    return make_join_request(KEY, about, domain=DOMAIN, now=NOW, generation=2)


def test_a_renewal_shows_who_asks() -> None:
    held, key = load_certificate(GRANT.certificate.encode()), new_key()
    request = make_join_request(key, ABOUT, domain=DOMAIN, now=NOW, generation=2)
    request = decode_request(joining.encode(continue_from(request, held, KEY)))
    assert check_request(request, domain=DOMAIN) == key.public_key()
    assert check_continuity(request) == KEY.public_key()


def test_a_renewal_is_for_the_one_key_that_it_was_made_for() -> None:
    held = load_certificate(GRANT.certificate.encode())
    request = continue_from(renewal_of(), held, KEY)
    # Requests are published: who reads one may try to have the same words said of a key of his own.
    said = joining._statement(request)
    csr = certificates.make_request(new_key(), EAST, DOMAIN, said).decode()
    mine = msgspec.structs.replace(request, csr=csr)
    check_request(mine, domain=DOMAIN)
    with pytest.raises(JoinRefused, match="not signed by the authority that it names"):
        check_continuity(mine)


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 3},
        {"id": "0" * 32},
        {"created": NOW + DAY},
        {"cluster": msgspec.structs.replace(ABOUT, name=WEST)},
    ],
)
def test_a_renewal_that_was_changed_is_refused(change: dict[str, Any]) -> None:
    request = continue_from(renewal_of(), load_certificate(GRANT.certificate.encode()), KEY)
    with pytest.raises(JoinRefused, match="not signed by the authority"):
        check_continuity(msgspec.structs.replace(request, **change))


def test_a_renewal_without_an_authority_or_with_junk_for_it_is_refused() -> None:
    request = continue_from(renewal_of(), load_certificate(GRANT.certificate.encode()), KEY)
    assert request.continuity is not None
    with pytest.raises(JoinRefused, match="does not show that its present authority makes it"):
        check_continuity(renewal_of())
    junk: list[dict[str, str]] = [
        {"signature": ""},
        {"signature": "%"},
        {"certificate": ""},
        {"certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
    ]
    for change in junk:
        continuity = msgspec.structs.replace(request.continuity, **change)
        with pytest.raises(JoinRefused, match="not signed by the authority"):
            check_continuity(msgspec.structs.replace(request, continuity=continuity))


def test_one_file_is_not_taken_for_the_other() -> None:
    with pytest.raises(JoinRefused, match=r"not a join request: .*JoinGrant"):
        decode_request(joining.encode(GRANT))
    with pytest.raises(JoinRefused, match=r"not a grant: .*JoinRequest"):
        decode_grant(joining.encode(REQUEST))


def test_another_version_is_refused_as_such() -> None:
    with pytest.raises(JoinRefused, match="version 2, this Isthmus knows version 1"):
        check_request(msgspec.structs.replace(REQUEST, version=2), domain=DOMAIN)
    with pytest.raises(JoinRefused, match="version 2"):
        accept(msgspec.structs.replace(GRANT, version=2))


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_junk_is_refused_and_crashes_nothing(junk: bytes | str) -> None:
    for decode in (decode_request, decode_grant):
        with pytest.raises(JoinRefused):
            decode(junk)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 1500,
        b'{"a":' * 100_000,
        b"x" * (2 << 20),
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        b"a: &a [*a]",
        b"!!python/object/apply:os.system [true]",
        b"{\xff",
        b"--- a\n--- b\n",
        b"1: 2\n2: 3\n",
    ],
)
def test_text_made_to_hurt_is_refused(text: bytes) -> None:
    with pytest.raises(JoinRefused):
        decode_request(text)
