"""One proxy on a stream: what is known of it, what it was sent, what it took and what it refused, and since when."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from federation.model import ProxyScope
from federation.xds.protocol import Acked, DeltaStream, Ignored, Order, Push, Rejected, Reply, Subscribed
from federation.xds.resources import TypeUrl
from trust.spiffe import Identity

log = logging.getLogger(__name__)


class ProxyNode(msgspec.Struct, frozen=True):
    """How a proxy introduces itself: Envoy's node. `metadata` holds the entries whose value is text.

    `peer` is the IP address that it asks from.
    """

    id: str
    metadata: Mapping[str, str]
    peer: str = ""


class RejectedResource(msgspec.Struct, frozen=True):
    """A resource that a proxy refused, since when and why."""

    name: str
    version: str
    message: str
    since: datetime


class TrustMark(msgspec.Struct, frozen=True):
    """What a proxy was given of its trust: digest of the bundle, fingerprint of the authority that signed its
    certificate, digest of the revoked set."""

    bundle: str = ""
    authority: str = ""
    revoked: str = ""


class TypeStatus(msgspec.Struct, frozen=True):
    """One resource type at one proxy. `acknowledged` counts resources, `pushes` responses on this stream."""

    type_url: TypeUrl
    acknowledged: int
    pushes: int
    rejected: tuple[RejectedResource, ...] = ()
    stalled_since: datetime | None = None


class ProxyStatus(msgspec.Struct, frozen=True):
    """A proxy on a stream now. `acknowledged_revision` is 0 until it has taken (or refused) a whole picture.

    `mark` is what it acknowledged of its trust, None before the first time; `certificate_expires` belongs to it.
    """

    node: str
    scope: ProxyScope
    connected_since: datetime
    offered_revision: int
    acknowledged_revision: int
    acknowledged_at: datetime | None
    types: tuple[TypeStatus, ...]
    mark: TrustMark | None = None
    certificate_expires: datetime | None = None


class Session:
    """The StreamObserver of one proxy's stream."""

    def __init__(
        self,
        node: ProxyNode,
        identity: Identity,
        scope: ProxyScope,
        *,
        on_settled: Callable[[int, datetime], None],
        on_pushed: Callable[[TypeUrl], None],
        on_rejected: Callable[[TypeUrl], None],
    ) -> None:
        """`on_settled` is told, when the proxy took changes, the revision that it had before, and the moment (UTC)."""
        self.node = node
        self.identity = identity
        self.scope = scope
        self.connected_since = datetime.now(UTC)
        self.stream = DeltaStream(Order.ENVOY)
        self._on_settled = on_settled
        self._on_pushed = on_pushed
        self._on_rejected = on_rejected
        self._pushes: Counter[TypeUrl] = Counter()
        self._rejected_since: dict[tuple[TypeUrl, str, str], datetime] = {}
        self._stalled_since: dict[TypeUrl, datetime] = {}
        self._offered_revision = 0
        self._acknowledged_revision = 0
        self._acknowledged_at: datetime | None = None
        self._is_changing = False
        self._is_refusing = False

    def offer(self, revision: int) -> None:
        """Notes that the resources of this revision are offered next."""
        self._offered_revision = revision

    def pushed(self, push: Push) -> None:
        """Notes a response."""
        self._pushes[push.type_url] += 1
        self._is_changing |= push.type_url is not TypeUrl.SECRET  # certificates are renewed without any change
        self._on_pushed(push.type_url)

    def replied(self, reply: Reply) -> None:
        """Notes a request."""
        match reply:
            case Rejected(type_url=type_url, message=message, parked=parked):
                self._is_refusing = True
                self._on_rejected(type_url)
                now = datetime.now(UTC)
                for one in parked:
                    self._rejected_since[one.type_url, one.name, one.version] = now
                names = [one.name for one in parked]
                fields = {"node": self.node.id, "type": type_url.rpartition(".")[2], "resources": names}
                log.warning("proxy refused resources", extra={**fields, "reason": message})
            case Ignored(reason=reason):
                log.debug("request ignored", extra={"node": self.node.id, "reason": reason})
            case Acked() | Subscribed():
                pass
        stalled = self.stream.stalled
        self._stalled_since = {one: since for one, since in self._stalled_since.items() if one in stalled}
        self.note_settled()

    def stalled(self, types: tuple[TypeUrl, ...]) -> None:
        """Notes that the answers of these types are waited for no longer."""
        now = datetime.now(UTC)
        for type_url in types:
            if type_url not in self._stalled_since:
                self._stalled_since[type_url] = now
                fields = {"node": self.node.id, "type": type_url.rpartition(".")[2]}
                log.warning("proxy does not answer", extra=fields)
        self.note_settled()

    def note_settled(self) -> None:
        """Notes, if it is so, that nothing of what was offered is under way any more."""
        if self._offered_revision == self._acknowledged_revision or not self.stream.is_settled:
            return
        now = datetime.now(UTC)
        has_converged = self._is_changing and not self._is_refusing and not self.stream.stalled
        if has_converged and self._acknowledged_revision:  # the first picture of a stream is no change
            self._on_settled(self._acknowledged_revision, now)
        self._is_changing = self._is_refusing = False
        self._acknowledged_revision = self._offered_revision
        self._acknowledged_at = now

    def status(self) -> ProxyStatus:
        """Returns what is to be shown of this proxy."""
        rejected: dict[TypeUrl, list[RejectedResource]] = {}
        for (type_url, name), one in sorted(self.stream.rejections.items()):
            since = self._rejected_since[type_url, name, one.version]
            rejected.setdefault(type_url, []).append(RejectedResource(name, one.version, one.message, since))
        return ProxyStatus(
            node=self.node.id,
            scope=self.scope,
            connected_since=self.connected_since,
            offered_revision=self._offered_revision,
            acknowledged_revision=self._acknowledged_revision,
            acknowledged_at=self._acknowledged_at,
            types=tuple(
                TypeStatus(
                    type_url=type_url,
                    acknowledged=len(held),
                    pushes=self._pushes[type_url],
                    rejected=tuple(rejected.get(type_url, ())),
                    stalled_since=self._stalled_since.get(type_url),
                )
                for type_url, held in sorted(self.stream.acknowledged.items())
            ),
        )
