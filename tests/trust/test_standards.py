"""Certificates are what RFC 5280 and SPIFFE's X509-SVID document say, by the judgement of others: openssl and pkilint.

pkilint is asked with its PKIX validators alone: those of the CA/Browser Forum and of ETSI are about public authorities
(revocation services, certificate policies, organisations in subjects), which a private mesh has none of.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import validators
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pkilint import loader, validation
from pkilint.pkix import certificate as pkix
from pkilint.pkix import extension, name

from tests.support.lifecycle import DOMAIN, EAST, HOLDERS, Chain, Life, live
from tests.support.openssl import verify_strictly
from trust.certificates import certificate_pem, make_intermediate, make_leaf, make_root, new_key
from trust.custody import FileCustody
from trust.spiffe import ClusterName, Identity

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LONG = Identity(ClusterName("c" * 63), "n" * 63, ("s" * 63 + ".") * 3 + "s" * 61)

WHEN = ("joined", "renewed", "rotated")
CHAINS = [f"{when} {holder}" for when in WHEN for holder in HOLDERS] + ["long"]
PROFILES = [*(f"leaf of {chain}" for chain in CHAINS), *(f"{kind} {when}" for when in WHEN for kind in ("CA", "root"))]
PROFILES += ["CA long", "root long"]

IGNORED = {
    # pkilint hands the URI to the library `validators`, which knows the schemes of the web and not `spiffe` (RFC 3986
    # section 3.1 allows any). Ignored for a URI that it accepts with https in front.
    "pkix.invalid_uri_syntax": lambda certificate: (
        validators.url(uri(certificate).replace("spiffe://", "https://"), simple_host=True) is True
    ),
}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    directory = tmp_path_factory.mktemp("life")
    root, data = FileCustody(directory / "root"), FileCustody(directory / "data")
    return live(directory, root_keys=root, cluster_keys=data, now=NOW)


@pytest.fixture(scope="module")
def chains(life: Life) -> Mapping[str, Chain]:
    """Also the extremes: the longest names there can be, a root that lives for a century (GeneralizedTime)."""
    root_key, key = new_key(), new_key()
    root = make_root(root_key, DOMAIN, now=NOW, lifetime=timedelta(days=36500))
    intermediate = make_intermediate(
        root,
        root_key,
        public_key=key.public_key(),
        cluster=LONG.cluster,
        domain=DOMAIN,
        now=NOW,
        lifetime=timedelta(days=36499),
    )
    leaf = make_leaf(
        intermediate,
        key,
        public_key=new_key().public_key(),
        identity=LONG,
        domain=DOMAIN,
        extra_dns=(),
        now=NOW,
        lifetime=timedelta(hours=24),
    )
    return {**life.chains, "long": Chain(leaf, intermediate, root)}


@pytest.fixture(scope="module")
def certificates(chains: Mapping[str, Chain]) -> Mapping[str, x509.Certificate]:
    """One of each profile, by its name."""
    found = {f"leaf of {when}": chain.leaf for when, chain in chains.items()}
    for when in (*WHEN, "long"):
        chain = chains[when if when == "long" else f"{when} workload"]
        found |= {f"CA {when}": chain.intermediate, f"root {when}": chain.root}
    assert sorted(found) == sorted(PROFILES)
    return found


@pytest.fixture(scope="module")
def linter() -> validation.Validator:
    """The PKIX validators of `lint_pkix_cert`."""
    return pkix.create_pkix_certificate_validator_container(
        pkix.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            pkix.create_issuer_validator_container([]),
            pkix.create_validity_validator_container(),
            pkix.create_subject_validator_container([]),
            pkix.create_extensions_validator_container([]),
            pkix.create_spki_validator_container([]),
        ],
    )


def findings(linter: validation.Validator, certificate: x509.Certificate) -> set[str]:
    """What the linter has to say, from NOTICE up."""
    document = loader.RFC5280CertificateDocumentLoader().load_pem_document(certificate_pem(certificate).decode(), "it")
    results = linter.validate(document.root)
    assert len(results) > 20, "the linter has looked"
    severity = validation.ValidationFindingSeverity.NOTICE
    return {
        one.finding.code
        for result in results
        for one in result.finding_descriptions
        if one.finding.severity <= severity
    }


def uri(certificate: x509.Certificate) -> str:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (found,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return found


def usage(certificate: x509.Certificate) -> x509.Extension[x509.KeyUsage]:
    return certificate.extensions.get_extension_for_class(x509.KeyUsage)


# RFC 5280, by others


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_openssl_accepts_every_chain_strictly(
    chains: Mapping[str, Chain], chain: str, purpose: str, tmp_path: Path
) -> None:
    one = chains[chain]
    said = verify_strictly(tmp_path, one.leaf, root=one.root, between=(one.intermediate,), purpose=purpose, at=NOW)
    assert said.endswith("leaf.pem: OK"), said


@pytest.mark.parametrize("when", [*WHEN, "long"])
def test_openssl_accepts_every_authority_strictly(chains: Mapping[str, Chain], when: str, tmp_path: Path) -> None:
    one = chains[when if when == "long" else f"{when} workload"]
    for certificate in (one.intermediate, one.root):
        assert verify_strictly(tmp_path, certificate, root=one.root, at=NOW).endswith("leaf.pem: OK")


def test_openssl_refuses_what_is_not_ours(chains: Mapping[str, Chain], tmp_path: Path) -> None:
    """The judge judges: below the root of before, after its end, outside of the slice."""
    one, before = chains["rotated workload"], chains["joined workload"]
    said = verify_strictly(tmp_path, one.leaf, root=before.root, between=(one.intermediate,), at=NOW)
    assert "unable to get" in said
    said = verify_strictly(tmp_path, one.leaf, root=one.root, between=(one.intermediate,), at=NOW + timedelta(hours=25))
    assert "certificate has expired" in said
    key = new_key()
    root_key = new_key()
    root = make_root(root_key, DOMAIN, now=NOW, lifetime=timedelta(days=1))
    east = make_intermediate(
        root, root_key, public_key=key.public_key(), cluster=EAST, domain=DOMAIN, now=NOW, lifetime=timedelta(days=1)
    )
    wests = make_leaf(
        east,
        key,
        public_key=key.public_key(),
        identity=Identity(ClusterName("west"), "shop", "cart"),
        domain=DOMAIN,
        extra_dns=(),
        now=NOW,
        lifetime=timedelta(hours=1),
    )
    said = verify_strictly(tmp_path, wests, root=root, between=(east,), at=NOW)
    assert "permitted subtree violation" in said


@pytest.mark.parametrize("profile", PROFILES)
def test_the_linter_finds_nothing(
    certificates: Mapping[str, x509.Certificate], profile: str, linter: validation.Validator
) -> None:
    certificate = certificates[profile]
    found = findings(linter, certificate)
    ignored = {code for code in found if code in IGNORED and IGNORED[code](certificate)}
    assert found == ignored
    assert ignored == ({"pkix.invalid_uri_syntax"} if profile.startswith("leaf") else set())


def _without_critical_names(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    names = x509.SubjectAlternativeName([x509.DNSName("a.example")])
    return builder.subject_name(x509.Name([])).add_extension(names, critical=False)


def _with_a_space_in_a_dns_name(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    names = x509.SubjectAlternativeName([x509.DNSName("a b.example")])
    return builder.subject_name(_NAME).add_extension(names, critical=False)


def _signs_certificates_but_is_no_authority(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    flags = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    sign = x509.KeyUsage(**flags, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False)
    return builder.subject_name(_NAME).add_extension(sign, critical=True)


_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "one")])


@pytest.mark.parametrize(
    "change", [_without_critical_names, _with_a_space_in_a_dns_name, _signs_certificates_but_is_no_authority]
)
def test_the_linter_finds_what_is_wrong(
    change: Callable[[x509.CertificateBuilder], x509.CertificateBuilder], linter: validation.Validator
) -> None:
    key = new_key()
    builder = x509.CertificateBuilder(_NAME, None, key.public_key(), x509.random_serial_number(), NOW, NOW)
    assert findings(linter, change(builder).sign(key, hashes.SHA256())) - set(IGNORED)


# RFC 5280, by us, where a linter cannot know what we mean


def test_serial_numbers_are_positive_short_and_never_repeated(life: Life) -> None:
    made = {one.serial_number: one for chain in life.chains.values() for one in chain.certificates}
    assert len(made) == len(life.chains) + 3 + 2, "9 leaves, 3 intermediates, 2 roots"
    for number in made:
        assert 0 < number.bit_length() < 160, "section 4.1.2.2: at most 20 octets"
        assert number.bit_length() > 100, "not to be guessed"


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_hangs_together_by_names_and_key_identifiers(chains: Mapping[str, Chain], chain: str) -> None:
    leaf, intermediate, root = chains[chain].certificates
    for one, issuer in ((leaf, intermediate), (intermediate, root)):
        assert one.issuer == issuer.subject
        assert list(issuer.subject), "section 4.1.2.6: an authority has a name"
        subject_key = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        authority = one.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        assert authority.value.key_identifier == subject_key.value.digest
        assert not subject_key.critical
        assert not authority.critical
        assert issuer.not_valid_before_utc <= one.not_valid_before_utc
        assert one.not_valid_after_utc <= issuer.not_valid_after_utc


@pytest.mark.parametrize("profile", PROFILES)
def test_keys_and_signatures_are_p256_and_sha256(certificates: Mapping[str, x509.Certificate], profile: str) -> None:
    certificate = certificates[profile]
    assert certificate.version is x509.Version.v3
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)


# SPIFFE X509-SVID, by its sections


@pytest.mark.parametrize("chain", CHAINS)
def test_section_2_a_leaf_has_exactly_one_uri_and_it_is_a_spiffe_id(chains: Mapping[str, Chain], chain: str) -> None:
    found = uri(chains[chain].leaf)  # exactly one
    parts = urlsplit(found)
    assert parts.scheme == "spiffe"
    assert re.fullmatch(r"[a-z0-9._-]{1,255}", parts.netloc), "SPIFFE-ID section 2.1: no port, no user, lower case"
    assert parts.query == parts.fragment == ""
    assert len(found.encode()) <= 2048, "SPIFFE-ID section 2.3"
    assert found.isascii()


@pytest.mark.parametrize("chain", CHAINS)
def test_section_3_1_the_id_of_a_leaf_has_a_path(chains: Mapping[str, Chain], chain: str) -> None:
    path = urlsplit(uri(chains[chain].leaf)).path
    segments = path.removeprefix("/").split("/")
    assert path.startswith("/")
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", one) and one not in (".", "..") for one in segments)


@pytest.mark.parametrize("profile", [one for one in PROFILES if not one.startswith("leaf")])
def test_section_3_2_a_signing_certificate_is_nobodys_identity(
    certificates: Mapping[str, x509.Certificate], profile: str
) -> None:
    """It may have an id without a path; ours have none, so nothing can take one for a workload."""
    with pytest.raises(x509.ExtensionNotFound):
        certificates[profile].extensions.get_extension_for_class(x509.SubjectAlternativeName)
    with pytest.raises(x509.ExtensionNotFound):
        certificates[profile].extensions.get_extension_for_class(x509.ExtendedKeyUsage)


@pytest.mark.parametrize("profile", PROFILES)
def test_section_4_1_only_signing_certificates_are_authorities(
    certificates: Mapping[str, x509.Certificate], profile: str
) -> None:
    found = certificates[profile].extensions.get_extension_for_class(x509.BasicConstraints)
    assert found.critical
    expected = {"leaf": (False, None), "CA": (True, 0), "root": (True, 1)}[profile.split()[0]]
    assert (found.value.ca, found.value.path_length) == expected


@pytest.mark.parametrize("profile", PROFILES)
def test_section_4_2_an_intermediate_speaks_for_its_slice_alone(
    certificates: Mapping[str, x509.Certificate], profile: str
) -> None:
    extensions = certificates[profile].extensions
    if not profile.startswith("CA"):
        with pytest.raises(x509.ExtensionNotFound):
            extensions.get_extension_for_class(x509.NameConstraints)
        return
    found = extensions.get_extension_for_class(x509.NameConstraints)
    assert found.critical
    host = f"{LONG.cluster if profile.endswith('long') else EAST}.{DOMAIN}"
    assert set(found.value.permitted_subtrees or ()) >= {x509.UniformResourceIdentifier(host), x509.DNSName(host)}


@pytest.mark.parametrize("profile", PROFILES)
def test_section_4_3_key_usage_is_critical_and_as_narrow_as_can_be(
    certificates: Mapping[str, x509.Certificate], profile: str
) -> None:
    found = usage(certificates[profile])
    assert found.critical
    is_leaf = profile.startswith("leaf")
    assert found.value.key_cert_sign is not is_leaf
    if is_leaf:
        assert found.value.digital_signature
        assert not found.value.crl_sign
        assert not found.value.key_encipherment
        assert not found.value.data_encipherment


@pytest.mark.parametrize("chain", CHAINS)
def test_section_4_4_a_leaf_is_for_servers_and_clients(chains: Mapping[str, Chain], chain: str) -> None:
    found = chains[chain].leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert set(found.value) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


@pytest.mark.parametrize("chain", CHAINS)
def test_an_empty_subject_has_critical_names(chains: Mapping[str, Chain], chain: str) -> None:
    """RFC 5280 section 4.2.1.6."""
    leaf = chains[chain].leaf
    assert list(leaf.subject) == []
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
