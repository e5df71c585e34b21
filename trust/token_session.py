"""A session with a PKCS#11 token: opened when it is needed, opened anew when it broke. The library's errors end here.

When the token fails (it was pulled, its daemon was restarted, the network broke), the session is opened anew, then
the module is started anew, then the caller is refused; the next call tries again. A PIN that was refused is not tried
again until it is another one: tokens lock themselves after a few.

Starting a module anew ends the sessions of every other ring of this process that uses it: they are opened anew, too.

Source: PKCS #11 v2.40 base specification, section 5 (functions); RFC 7512.
"""

import contextlib
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pkcs11
from pkcs11 import PKCS11Error, TokenFlag
from pkcs11.types import PROTECTED_AUTH, Session, Token

from trust.custody import CustodyRefused
from trust.pkcs11_uri import TokenUri

_LONGEST_PIN = 1024  # bytes

_Answer = TypeVar("_Answer")

_WRONG_PIN = (
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinExpired,
    pkcs11.PinLocked,
    pkcs11.UserPinNotInitialized,
)


class _Process:
    """What PKCS#11 makes state of the process: that a module runs is known to all of it, sessions are numbers of it.

    `turn` is held during every call: python-pkcs11 starts modules without CKF_OS_LOCKING_OK, so no two threads may be
    in one at once (SoftHSM ends the process, or empties the token). `restarts` tells sessions from before a restart,
    whose numbers were given out again: such a one may belong to somebody who is not logged in, and sees no key.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.restarts = 0


_PROCESS = _Process()


class TokenSession:
    """One session with one token, for any thread; all that are in this process take turns."""

    def __init__(self, uri: TokenUri, pin: bytes | None) -> None:
        """Reaches for nothing yet. `pin` is used when the URI names no file with it."""
        self._uri = uri
        self._pin = pin
        self._refused_pin: str | None = None
        self._session: Session | None = None
        self._opened_at = 0  # restart of the process's modules after which the session was opened

    def __str__(self) -> str:
        """Names the token, for messages."""
        return f"the token {self._uri.token or self._uri.serial}"

    def ask(self, action: Callable[[Session], _Answer]) -> _Answer:
        """Returns what `action` returns, which is called up to three times. Raises CustodyRefused."""
        with _PROCESS.turn:
            for mend in (self._forget, self._restart):
                try:
                    return action(self._opened())
                except (PKCS11Error, _TokenMissing):
                    mend()
            try:
                return action(self._opened())
            except PKCS11Error as error:
                self._forget()
                raise CustodyRefused(
                    f"{self} fails: {_say(error)}", "check that the token is there and its service runs; then try again"
                ) from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """Gives a session that may make and destroy objects; used within `ask`."""
        session = self._opened().token.open(rw=True)  # logged in already: that holds for all sessions of a process
        try:
            yield session
        finally:
            with contextlib.suppress(PKCS11Error):
                session.close()

    def _forget(self) -> None:
        # Not closed: that would log out every session of this process, those of other rings, too.
        self._session = None

    def _restart(self) -> None:
        self._forget()
        _PROCESS.restarts += 1
        with contextlib.suppress(PKCS11Error):  # a module that cannot end is started anew all the same
            pkcs11.lib(str(self._uri.module_path)).finalize()

    def _opened(self) -> Session:
        if self._session is None or self._opened_at != _PROCESS.restarts:
            self._forget()
            token = self._token()
            pin = self._read_pin(token)
            try:
                self._session = token.open(user_pin=pin)
            except pkcs11.UserAlreadyLoggedIn:  # by another ring of this process
                self._session = token.open()
            except _WRONG_PIN as error:
                self._refused_pin = pin if isinstance(pin, str) else None
                hint = "give the token's user PIN; see that it is not locked before you try again"
                raise CustodyRefused(f"{self} refuses the PIN: {_say(error)}", hint) from error
            self._opened_at = _PROCESS.restarts
        return self._session

    def _token(self) -> Token:
        uri, path = self._uri, self._uri.module_path
        try:
            library = pkcs11.lib(str(path))
        except PKCS11Error as error:
            message = f"the PKCS#11 module {path} does not start: {_say(error)}"
            raise CustodyRefused(message, "install the token's module, and check module-path and its setup") from error
        found = [
            token
            for token in library.get_tokens(
                token_label=uri.token or None, token_serial=uri.serial.encode() if uri.serial else None
            )
            if uri.manufacturer in ("", token.manufacturer_id) and uri.model in ("", token.model)
        ]
        if not found:
            raise _TokenMissing(f"{self} is not there: {path} shows none like it", "plug it in, or check the URI")
        if len(found) > 1:
            serials = ", ".join(token.serial.decode(errors="replace") for token in found)
            raise CustodyRefused(f"{self} is there {len(found)} times", f"name one: serial=..., of {serials}")
        return found[0]

    def _read_pin(self, token: Token) -> str | object:
        if self._uri.pin_source is not None:
            content = read_pin(self._uri.pin_source)
        elif self._pin is not None:
            content = self._pin
        elif token.flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
            return PROTECTED_AUTH  # typed on the token itself
        else:
            raise CustodyRefused(f"{self} wants a PIN and none was given", "say pin-source=file:/PATH in the URI")
        try:
            pin = content.decode()
        except UnicodeDecodeError as error:
            # Not chained: that error holds the PIN.
            del error
            raise CustodyRefused(f"the PIN of {self} is not UTF-8", "write the PIN as text") from None
        if pin == self._refused_pin:
            message = f"{self} has refused this PIN already: it is not tried again, for tokens lock themselves"
            raise CustodyRefused(message, "put the right PIN in its place, or start again")
        return pin


class _TokenMissing(CustodyRefused):
    """There is no such token just now; a module that is started anew may see it."""


def read_pin(path: Path) -> bytes:
    """Returns the PIN in a file, without the end of its line; raises CustodyRefused."""
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            content = file.read(_LONGEST_PIN + 1).rstrip(b"\r\n") if stat.S_ISREG(mode) else b""
    except OSError as error:
        message = f"the PIN in {path} cannot be read: {error.strerror or 'no file'}"
        raise CustodyRefused(message, "check pin-source and the rights of its file") from error
    if mode & stat.S_IRWXO:
        message = f"the PIN in {path} is open to everybody (mode {stat.S_IMODE(mode):o})"
        raise CustodyRefused(message, f"chmod 600 {path}; for a Kubernetes Secret: defaultMode: 0400")
    if not 0 < len(content) <= _LONGEST_PIN:
        raise CustodyRefused(f"{path} holds no PIN", "put the PIN into it, on one line")
    return content


def _say(error: PKCS11Error) -> str:
    """Says what a token answered; the library's errors hold names of functions and paths, never what was passed."""
    return f"{type(error).__name__}{f' ({error})' if str(error) else ''}"
