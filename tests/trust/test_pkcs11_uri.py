"""A pkcs11: URI is understood whole or refused, and says nothing secret."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.pkcs11_uri import EXAMPLE, TokenUri, UriRefused, parse_token_uri, print_token_uri

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PATHS = WORDS.map(lambda text: Path("/" + text.strip("/").replace("//", "/")))


@given(
    st.builds(
        TokenUri,
        token=WORDS.filter(bool),
        serial=WORDS,
        manufacturer=WORDS,
        model=WORDS,
        object=WORDS,
        module_path=PATHS,
        pin_source=st.none() | PATHS,
    )
)
def test_what_is_printed_is_parsed_again(uri: TokenUri) -> None:
    assert parse_token_uri(print_token_uri(uri)) == uri
    assert print_token_uri(uri).isascii()


@given(st.text(max_size=80) | st.text("pkcs1:;&?=token%2-/ ", max_size=40).map(lambda text: "pkcs11:" + text))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(UriRefused):  # any other error fails the test
        uri = parse_token_uri(text)
        assert parse_token_uri(print_token_uri(uri)) == uri


def test_the_parts_are_read_as_the_rfc_writes_them() -> None:
    uri = parse_token_uri(
        "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;serial=0a;"
        "object=east?pin-source=file:/etc/token_pin&module-path=/usr/lib/lib.so"
    )
    assert uri == TokenUri(
        token="The Software PKCS#11 Softtoken",
        manufacturer="Snake Oil, Inc.",
        model="1.0",
        serial="0a",
        object="east",
        module_path=Path("/usr/lib/lib.so"),
        pin_source=Path("/etc/token_pin"),
    )
    assert parse_token_uri(EXAMPLE).pin_source == Path("/run/pin")


@pytest.mark.parametrize("source", ["file:/run/pin", "file:///run/pin", "/run/pin", "%2Frun%2Fpin"])
def test_a_file_with_a_pin_is_named_in_many_ways(source: str) -> None:
    assert parse_token_uri(f"pkcs11:token=a?module-path=/m&pin-source={source}").pin_source == Path("/run/pin")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a pkcs11: URI"),
        ("PKCS12:token=a", "not a pkcs11: URI"),
        ("pkcs11:?module-path=/m", "names no token"),
        ("pkcs11:object=a?module-path=/m", "names no token"),
        ("pkcs11:token=a", "names no module"),
        ("pkcs11:token=a?module-path=lib.so", "whole path"),
        ("pkcs11:token=a;token=b?module-path=/m", "twice"),
        ("pkcs11:token=a;type=private?module-path=/m", "nobody here understands"),
        ("pkcs11:token=a;x-vendor=1?module-path=/m", "nobody here understands"),
        ("pkcs11:token=a?module-path=/m&module-name=x", "nobody here understands"),
        ("pkcs11:token=a;module-path=/m", "nobody here understands"),
        ("pkcs11:token=a?module-path=/m&", "nobody here understands"),
        ("pkcs11:token=?module-path=/m", "empty"),
        ("pkcs11:token=a%00?module-path=/m", "empty or no text"),
        ("pkcs11:token=%ff?module-path=/m", "not UTF-8"),
        ("pkcs11:token=a?module-path=/m&pin-source=pin", "names no file"),
        ("pkcs11:token=a?module-path=/m&pin-source=|/bin/echo", "names no file"),
        ("pkcs11:token=a?module-path=/m&pin-source=https://x/pin", "names no file"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, said: str) -> None:
    with pytest.raises(UriRefused, match=said) as refusal:
        parse_token_uri(text)
    assert refusal.value.hint


@pytest.mark.parametrize("where", ["?module-path=/m&pin-value=4711", ";pin-value=4711?module-path=/m"])
def test_a_pin_in_the_uri_is_refused_and_not_repeated(where: str) -> None:
    with pytest.raises(UriRefused, match="does not belong") as refusal:
        parse_token_uri(f"pkcs11:token=a{where}")
    assert "4711" not in f"{refusal.value!r} {refusal.value.message} {refusal.value.hint}"
    assert "pin-source=file:" in refusal.value.hint


def test_labels_and_names_are_inverse() -> None:
    plain = TokenUri(token="a", module_path=Path("/m"))
    east = TokenUri(token="a", object="east", module_path=Path("/m"))
    assert (plain.label("ca-1"), east.label("ca-1")) == ("ca-1", "east-ca-1")
    for uri in (plain, east):
        assert uri.name(uri.label("ca-1")) == "ca-1"
    assert east.name("west-ca-1") is None
