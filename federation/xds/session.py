"""One proxy on a stream: what is known of it, what it was sent, what it took and what it refused, and since when."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from federation.model import ProxyRole, ProxyScope
from federation.names import TRUST_BUNDLE_SECRET, WORKLOAD_SECRET
from federation.proxy_trust import ProxyTrust
from federation.xds.protocol import Acked, DeltaStream, Ignored, Order, Push, Rejected, Reply, Subscribed
from federation.xds.resources import TypeUrl
from trust.spiffe import Identity

log = logging.getLogger(__name__)

_ENFORCING = frozenset({TypeUrl.CLUSTER, TypeUrl.ENDPOINTS, TypeUrl.LISTENER, TypeUrl.EXTENSION})
"""The types by which somebody revoked is kept out; at a gateway, by its routes too (`gateway.eastwest`)."""


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


class Offered(msgspec.Struct, frozen=True):
    """What an offer is about: the picture's revision, and the trust in it. `secrets` are the versions by name."""

    revision: int
    mark: TrustMark = TrustMark()
    expires: datetime | None = None
    secrets: Mapping[str, str] = {}


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
        on_trust: Callable[[ProxyTrust], None],
        known: ProxyTrust | None,
    ) -> None:
        """`on_settled` is told, when the proxy took changes, the revision that it had before, and the moment (UTC).

        `on_trust` is told what the proxy acknowledged of its trust, whenever that changes; `known` is what it did on
        streams before this one.
        """
        self.node = node
        self.identity = identity
        self.scope = scope
        self.connected_since = datetime.now(UTC)
        self.stream = DeltaStream(Order.ENVOY)
        self._on_settled = on_settled
        self._on_pushed = on_pushed
        self._on_rejected = on_rejected
        self._on_trust = on_trust
        self._pushes: Counter[TypeUrl] = Counter()
        self._rejected_since: dict[tuple[TypeUrl, str, str], datetime] = {}
        self._stalled_since: dict[TypeUrl, datetime] = {}
        self._offered = Offered(0)
        self._settled = self._offered
        self._acknowledged_at: datetime | None = None
        self._is_changing = False
        self._is_refusing = False
        now = self.connected_since
        self._trust = ProxyTrust(
            node=node.id,
            identity=f"{identity.namespace}/{identity.account}",
            bundle=known.bundle if known else "",
            authority=known.authority if known else "",
            revoked=known.revoked if known else "",
            revoked_at=known.revoked_at if known else None,
            expires=known.expires if known else None,
            since=now,
            at=now,
        )
        on_trust(self._trust)

    def offer(self, offered: Offered) -> None:
        """Notes what is offered next."""
        self._offered = offered
        if self._mark() != offered.mark:
            # `at`: since when it is waited for. Before the first ACK it may hold what it was sent all the same.
            expires = self._trust.expires or offered.expires
            self._trust = msgspec.structs.replace(self._trust, expires=expires, at=datetime.now(UTC))
            self._on_trust(self._trust)

    def end(self) -> None:
        """Notes that the stream has ended."""
        now = datetime.now(UTC)
        self._tell_trust(msgspec.structs.replace(self._trust, lost=now, at=now))

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
        if not self.stream.is_settled:
            return
        now = datetime.now(UTC)
        self._note_trust(now)
        if self._offered.revision != self._settled.revision:
            has_converged = self._is_changing and not self._is_refusing and not self.stream.stalled
            if has_converged and self._settled.revision:  # the first picture of a stream is no change
                self._on_settled(self._settled.revision, now)
            self._is_changing = self._is_refusing = False
            self._acknowledged_at = now
        self._settled = self._offered

    def _note_trust(self, now: datetime) -> None:
        """Takes what this proxy has of the trust that it was offered; what it refused or left open stays as it was.

        A proxy that uses no secrets asks for none: then there is nothing that it would have to take.
        """
        mark, expires = self._offered.mark, self._offered.expires
        following = msgspec.structs.replace(self._trust, problem=self._problem(), at=now)
        if self._has(TRUST_BUNDLE_SECRET):
            following = msgspec.structs.replace(following, bundle=mark.bundle)
        elif TRUST_BUNDLE_SECRET not in self._secrets:
            following = msgspec.structs.replace(following, bundle="")
        if self._has(WORKLOAD_SECRET):
            following = msgspec.structs.replace(following, authority=mark.authority, expires=expires)
        elif WORKLOAD_SECRET not in self._secrets:
            following = msgspec.structs.replace(following, authority="")
        is_news = following.revoked != mark.revoked or following.revoked_at is None
        if is_news and self._enforcing.isdisjoint(self._open_types()):
            following = msgspec.structs.replace(following, revoked=mark.revoked, revoked_at=now)
        self._tell_trust(following)

    def _tell_trust(self, following: ProxyTrust) -> None:
        before, self._trust = self._trust, following
        if msgspec.structs.replace(before, at=following.at) != following:
            self._on_trust(following)

    @property
    def _enforcing(self) -> frozenset[TypeUrl]:
        return _ENFORCING | {TypeUrl.ROUTES} if self.scope.audience.role is ProxyRole.GATEWAY else _ENFORCING

    @property
    def _secrets(self) -> Mapping[str, str]:
        """The secrets that the proxy has, by name, and their versions."""
        return self.stream.acknowledged.get(TypeUrl.SECRET, {})

    def _has(self, secret: str) -> bool:
        """Says whether the proxy has taken a secret as it was offered, or never asked for it."""
        if TypeUrl.SECRET in self.stream.stalled or (TypeUrl.SECRET, secret) in self.stream.rejections:
            return False
        return secret not in self._secrets or self._secrets[secret] == self._offered.secrets.get(secret)

    def _open_types(self) -> set[TypeUrl]:
        return {*self.stream.stalled, *(type_url for type_url, _ in self.stream.rejections)}

    def _problem(self) -> str:
        """Returns why the proxy does not have all of the trust that it was offered, for people."""
        refused = [
            one
            for (type_url, _), one in sorted(self.stream.rejections.items())
            if type_url is TypeUrl.SECRET or type_url in self._enforcing
        ]
        if refused:
            kind = refused[0].type_url.rpartition(".")[2]
            return f"rejected {kind} {refused[0].name}: {refused[0].message}"
        stalled = [one for one in self.stream.stalled if one is TypeUrl.SECRET or one in self._enforcing]
        if stalled:
            since = self._stalled_since.get(stalled[0], self.connected_since)
            return f"has not answered about {stalled[0].rpartition('.')[2]} since {since:%Y-%m-%d %H:%M:%S} UTC"
        return ""

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
            offered_revision=self._offered.revision,
            acknowledged_revision=self._settled.revision,
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
            mark=self._mark(),
            certificate_expires=self._trust.expires,
        )

    def _mark(self) -> TrustMark | None:
        trust = self._trust
        has_any = bool(trust.bundle or trust.authority) or trust.revoked_at is not None
        return TrustMark(trust.bundle, trust.authority, trust.revoked) if has_any else None
