"""The `pkcs11:` URI that names a token and how to reach it (RFC 7512), as far as a ring of keys needs it.

    pkcs11:token=isthmus;object=east?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin

`token` and `serial`, `manufacturer` and `model` choose the token; `object` begins the label of every key: a key `ca-1`
is labelled `east-ca-1`, so clusters can share a token. A URI is kept in files and seen in process lists. Therefore a
PIN in it (`pin-value`) is refused, and so is every attribute that would be passed over in silence.
"""

from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import msgspec

from trust.refusals import Refusal

SCHEME = "pkcs11:"
EXAMPLE = "pkcs11:token=isthmus?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin"

_UNESCAPED = ":[]@!$'()*+,="  # RFC 7512 section 2.3: allowed in values of both parts
_PATH = ("token", "serial", "manufacturer", "model", "object")
_QUERY = ("module-path", "pin-source")


class TokenUri(msgspec.Struct, frozen=True, kw_only=True):
    """A token and how to reach it. What is empty was not said."""

    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    object: str = ""
    module_path: Path
    pin_source: Path | None = None

    def label(self, name: str) -> str:
        """Returns the label (CKA_LABEL) of the key `name`."""
        return f"{self.object}-{name}" if self.object else name

    def name(self, label: str) -> str | None:
        """Inverse of `label`; None when the label is that of none of our keys."""
        start = self.label("")
        return label.removeprefix(start) if label.startswith(start) else None


class UriRefused(Refusal):
    """A text that names no token, or says more about it than is understood here."""


def parse_token_uri(text: str) -> TokenUri:
    """Parses a URI; raises UriRefused, which never repeats what may be a PIN."""
    if not text.startswith(SCHEME):
        raise UriRefused("this is not a pkcs11: URI", f"such as {EXAMPLE}")
    path, _, query = text.removeprefix(SCHEME).partition("?")
    said = {**_attributes(path, ";", _PATH), **_attributes(query, "&", _QUERY)}
    if not said.get("token") and not said.get("serial"):
        raise UriRefused("the URI names no token", f"say token=LABEL or serial=NUMBER: {EXAMPLE}")
    module = said.get("module-path", "")
    if not module.startswith("/"):
        message = "the URI names no module" if not module else f"{module!r} is not the whole path of a module"
        raise UriRefused(message, f"say module-path=/PATH of the token's PKCS#11 library: {EXAMPLE}")
    return TokenUri(
        token=said.get("token", ""),
        serial=said.get("serial", ""),
        manufacturer=said.get("manufacturer", ""),
        model=said.get("model", ""),
        object=said.get("object", ""),
        module_path=Path(module),
        pin_source=_pin_source(said["pin-source"]) if "pin-source" in said else None,
    )


def print_token_uri(uri: TokenUri) -> str:
    """Inverse of `parse_token_uri`."""
    path = [(name, getattr(uri, name)) for name in _PATH]
    query = [("module-path", str(uri.module_path))]
    if uri.pin_source is not None:
        query.append(("pin-source", f"file:{uri.pin_source}"))
    written = ";".join(f"{name}={quote(value, safe=_UNESCAPED + '&')}" for name, value in path if value)
    return f"{SCHEME}{written}?" + "&".join(f"{name}={quote(value, safe=_UNESCAPED + '/')}" for name, value in query)


def _attributes(text: str, separator: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name == "pin-value":
            hint = "put the PIN into a file of mode 0600 and name it: pin-source=file:/PATH"
            raise UriRefused("a PIN does not belong into a URI, where others see it", hint)
        if name not in known or not equals or name in found:
            what = "twice" if name in found else "and nobody here understands it"
            raise UriRefused(f"the URI says {name!r}, {what}", f"it may say {', '.join(known)} here, each once")
        try:
            found[name] = unquote_to_bytes(value).decode()
        except UnicodeDecodeError as error:
            raise UriRefused(f"{name} in the URI is not UTF-8", "write %XX for the bytes of UTF-8") from error
        if not found[name] or "\0" in found[name]:
            raise UriRefused(f"{name} in the URI is empty or no text", "say it, or leave it out")
    return found


def _pin_source(text: str) -> Path:
    # RFC 7512 section 2.4 lets it also be a command to run ("|program"): what a URI names is not run here.
    path = text.removeprefix("file://") if text.startswith("file://") else text.removeprefix("file:")
    if not path.startswith("/"):
        raise UriRefused("pin-source names no file", "say pin-source=file:/PATH with the whole path of a file")
    return Path(path)
