"""What one peer said and what was refused of it: shown to people, and told to the peer."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from federation.peering.exports import short_line
from federation.peering.intake import KINDS
from federation.xds.client import Received
from federation.xds.resources import TypeUrl
from trust.spiffe import ClusterName

log = logging.getLogger(__name__)

_STREAM = "Stream"
"""Stands among the rejections for all that a peer said on a stream, when it could not be understood."""
_MOST = 32
"""Of one peer, shown and told to it: a hostile one could invent names without end."""


class PeerRejection(msgspec.Struct, frozen=True, order=True):
    """Something that a peer said and that was refused. `resource` is `Kind name`."""

    resource: str
    message: str
    since: datetime


class Rejections:
    """What is refused of `peer` now: each until the peer says it anew."""

    def __init__(self, peer: ClusterName) -> None:
        self._peer = peer
        self._rejections: dict[str, PeerRejection] = {}

    @property
    def of_stream(self) -> PeerRejection | None:
        """Why a stream of it was ended here; None once one is understood again."""
        return self._rejections.get(_STREAM)

    def shown(self) -> tuple[PeerRejection, ...]:
        """Returns them by resource."""
        return tuple(sorted(self._rejections.values()))

    def note_end(self, problem: str) -> None:
        """Shows why a stream was ended here; the peer is told when it is called again."""
        message = short_line(problem)
        if _STREAM not in self._rejections:
            log.warning("ended the stream of a peer", extra={"peer": self._peer, "why": message})
            self._rejections[_STREAM] = PeerRejection(_STREAM, message, datetime.now(UTC))

    def note(self, received: Received, refused: Mapping[str, str]) -> str:
        """Shows what was refused of a response, and returns what the peer is told about it."""
        kind = KINDS[received.type_url]
        if received.type_url is TypeUrl.EXPORT:
            self._rejections.pop(_STREAM, None)  # it got this far
        for name in (*(resource.name for resource in received.upserts), *received.removed):
            self._rejections.pop(f"{kind} {short_line(name)}", None)
        told = [(f"{kind} {short_line(name)}", short_line(message)) for name, message in refused.items()]
        room = _MOST - len(self._rejections)
        for resource, message in told[:room]:
            self._rejections[resource] = PeerRejection(resource, message, datetime.now(UTC))
            log.warning("refused what a peer said", extra={"peer": self._peer, "resource": resource, "why": message})
        if len(told) > room:
            log.warning("refused more of what a peer said", extra={"peer": self._peer, "resources": len(told) - room})
        rest = f"; and {len(told) - _MOST} more" if len(told) > _MOST else ""
        return "; ".join(f"{resource}: {message}" for resource, message in told[:_MOST]) + rest
