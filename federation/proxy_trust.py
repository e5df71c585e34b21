"""What one proxy acknowledged of its trust, and when that no longer counts. Pure."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from federation import names
from federation.model import PodKey

_NEVER_CERTIFIED = timedelta(hours=1)
"""How long a record stays that says `connected` and has no certificate: its replica may have been killed."""

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class ProxyTrust(msgspec.Struct, frozen=True, kw_only=True):
    """What one proxy acknowledged. `bundle`, `authority` and `revoked` are those of its TrustMark.

    `identity` is `namespace/account`; `revoked_at` is when it took that set; `expires` is the end of the certificate
    that it acknowledged, None before the first. `since` is when its last connection began, `lost` when that ended, None
    while it lasts; `problem` is why it did not take what it was offered last. `at`: since when it is as it is, or since
    when it has been waited for.
    """

    node: str
    identity: str
    bundle: str = ""
    authority: str = ""
    revoked: str = ""
    revoked_at: _Moment | None = None
    expires: _Moment | None = None
    since: _Moment
    lost: _Moment | None = None
    problem: str = ""
    at: _Moment

    @property
    def is_connected(self) -> bool:
        """Whether it is on a stream, as far as is known."""
        return self.lost is None


def with_past(record: ProxyTrust, known: ProxyTrust | None) -> ProxyTrust:
    """Returns a record with what its proxy acknowledged on earlier streams, as far as nothing has replaced it.

    A stream that begins before etcd was read knows nothing of that, and the proxy still holds its certificate.
    """
    if known is None:
        return record
    if record.revoked_at is None:
        record = msgspec.structs.replace(record, revoked=known.revoked, revoked_at=known.revoked_at)
    if not record.authority and known.expires is not None and known.expires > record.at:
        expires = max(known.expires, record.expires or known.expires)
        record = msgspec.structs.replace(record, authority=known.authority, expires=expires)
    return record if record.bundle else msgspec.structs.replace(record, bundle=known.bundle)


def has_place(node: str, pods: Collection[PodKey]) -> bool:
    """Says whether there is still a pod for the proxy `node`; of a gateway, which has none, always."""
    parsed = names.parse_node(node)
    return parsed is not None and (not isinstance(parsed[1], PodKey) or parsed[1] in pods)


def is_over(record: ProxyTrust, *, gone_since: datetime | None, now: datetime) -> bool:
    """Says whether a proxy that is not connected to the replica that asks is no more.

    `gone_since` is since when its pod is gone, None while it is there. One that another replica holds may outlive its
    pod: it is removed, and when that replica writes it again, after `gone_since`, it is believed.
    """
    if record.expires is None:
        return not record.is_connected or now - record.at > _NEVER_CERTIFIED
    if record.expires <= now:
        return True
    return gone_since is not None and (not record.is_connected or record.at <= gone_since)
