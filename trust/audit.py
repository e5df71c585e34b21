"""The audit trail as values: who was given, or refused, an identity, by which proof, and what was done to trust. Pure.

One event is one line of JSON. Nothing of it is a secret: credentials are named by a reference (the id of a token), and
whoever asks may call himself anything, so what looks like a key or a credential is taken out of every text.
"""

import itertools
import re
from collections.abc import Hashable
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec


class AuditKind(StrEnum):
    """What happened."""

    ISSUED = "issued"  # a certificate was made
    REFUSED = "refused"  # somebody did not get a stream, a certificate or an answer
    TOKEN_CREATED = "token-created"  # noqa: S105 - no password
    TOKEN_CLAIMED = "token-claimed"  # noqa: S105 - no password
    TOKEN_REVOKED = "token-revoked"  # noqa: S105 - no password
    TOKEN_REMOVED = "token-removed"  # noqa: S105 - no password; some time after it expired
    JOINED = "joined"  # the first grant was taken: this cluster is a member
    GRANTED = "granted"  # a grant for a new authority was taken
    ROTATED = "rotated"  # another authority signs now, or an old key was destroyed
    BUNDLE_TAKEN = "bundle-taken"
    REVOKED = "revoked"
    RESTORED = "restored"
    DRAINED = "drained"  # calls are to leave a member, or one service of it
    UNDRAINED = "undrained"
    LEFT = "left"  # this cluster left the mesh, or forgot a member


_LONGEST_TEXT = 400  # characters of one field: who asks chooses some of them
_SECRETS = (  # in this order: one may begin with letters that another would take for its end
    re.compile(r"-----BEGIN[^-]{0,64}-----.*?(-----END[^-]{0,64}-----|\Z)", re.DOTALL),  # keys, certificate requests
    re.compile(r"eyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]+){2,}"),  # JWTs
    re.compile(r"isthmus-[A-Za-z0-9_-]{40,}"),  # join tokens
)
_REMOVED = "(removed)"

_WINDOW = timedelta(minutes=10)  # of one refusal, until its repetitions are counted in a line of their own
_MINUTE = timedelta(minutes=1)
_LINES_PER_MINUTE = 30  # for different refusals of one proof
_REMEMBERED = 1024  # different refusals at one time


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the trail.

    `subject` is whom it is about: an identity, a cluster, a token's id, a bundle. `asked_by` is the node and the peer
    address of who asked, or the admin API; `proof` names what was shown, such as `join-token 3fa9c1d27b60`. `serial` is
    hexadecimal, `authority` the fingerprint of the key that signed. `count` is more than 1 for refusals that were
    repeated since the line before.
    """

    kind: AuditKind
    at: datetime
    subject: str
    asked_by: str = ""
    proof: str = ""
    serial: str = ""
    expires: datetime | None = None
    authority: str = ""
    reason: str = ""
    count: int = 1


def encode(event: AuditEvent) -> bytes:
    """Prints an event as one line of JSON, with the line's end. Texts are cut, and freed of what may be a secret."""
    texts = {name: harmless(getattr(event, name)) for name in ("subject", "asked_by", "proof", "reason")}
    return msgspec.json.encode(msgspec.structs.replace(event, **texts)) + b"\n"


def harmless(text: str) -> str:
    """Returns a text as it may be logged: without what may be a key or a credential, at most 400 characters."""
    text = text[: 64 * _LONGEST_TEXT]
    for secret in _SECRETS:
        text = secret.sub(_REMOVED, text)
    clean = text.encode(errors="backslashreplace").decode()  # JSON has no lone surrogates
    return clean if len(clean) <= _LONGEST_TEXT else clean[:_LONGEST_TEXT] + "..."


class RefusalLimit:
    """Keeps a flood of refusals from filling the trail. Not a clock: moments come with the events.

    A refusal like one of the last ten minutes is only counted. Of different ones, each proof (and all strangers
    together) has thirty lines a minute, and the rest is counted: who floods with one hides nobody who shows another.
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, AuditEvent] = {}
        self._repeated: dict[Hashable, int] = {}
        self._lines: dict[str, tuple[datetime, int]] = {}

    def take(self, event: AuditEvent) -> tuple[AuditEvent, ...]:
        """Returns what is to be written now that `event` happened: counts of what has ended, perhaps `event` itself."""
        due = self.due(event.at)
        if len(self._seen) >= _REMEMBERED:
            due += self.flush(event.at)
        key: Hashable = (event.kind, event.subject, event.asked_by, event.proof, event.reason)
        if key not in self._seen and not self._has_room(event):
            # One line for all: who they were is not worth a line each.
            key = (event.kind, event.proof)
            self._seen.setdefault(
                key,
                AuditEvent(
                    kind=event.kind, at=event.at, subject="(several)", proof=event.proof, reason="too many to tell each"
                ),
            )
        if key in self._seen:
            self._repeated[key] = self._repeated.get(key, 0) + 1
            return due
        self._seen[key] = event
        return (*due, event)

    def due(self, now: datetime) -> tuple[AuditEvent, ...]:
        """Returns the counts of repetitions whose time has ended, to be written now."""
        ended = itertools.takewhile(lambda seen: not seen[1].at <= now < seen[1].at + _WINDOW, self._seen.items())
        return self._end([key for key, _ in ended], now)

    def flush(self, now: datetime) -> tuple[AuditEvent, ...]:
        """Returns all counts, and forgets all: at the end of a process."""
        self._lines.clear()
        return self._end(list(self._seen), now)

    def _end(self, keys: list[Hashable], now: datetime) -> tuple[AuditEvent, ...]:
        ended = [(self._seen.pop(key), self._repeated.pop(key, 0)) for key in keys]
        return tuple(msgspec.structs.replace(first, at=now, count=count) for first, count in ended if count)

    def _has_room(self, event: AuditEvent) -> bool:
        since, lines = self._lines.get(event.proof, (event.at, 0))
        if not since <= event.at < since + _MINUTE:
            since, lines = event.at, 0
        if lines >= _LINES_PER_MINUTE:
            return False
        if len(self._lines) >= _REMEMBERED:
            self._lines.clear()
        self._lines[event.proof] = (since, lines + 1)
        return True
