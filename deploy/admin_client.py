"""Talks to the admin API of a control plane: what the commands and the lab ask of it."""

import contextlib
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from deploy.failures import CommandFailed
from federation.admin import DrainOrder
from federation.reports import (
    ClusterReport,
    DrainReport,
    ErrorReport,
    KnownTokenReport,
    LoadReport,
    ProxyReport,
    RevocationReport,
    ServiceReport,
    StatusReport,
    TokenReport,
    TrustReport,
)
from trust.bundle import TrustBundle
from trust.joining import Grant, Introduction, JoinRequest

_Answer = TypeVar("_Answer")

_TIMEOUT = timedelta(seconds=10)  # the control plane may wait for its etcd for a few


class ControlUnreachable(CommandFailed):
    """Nobody answered at the address of the admin API, or not in time."""


class ControlRefused(CommandFailed):
    """The control plane understood and said no; `status` is the HTTP status."""

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


class AdminClient:
    """The admin API of one control plane. An async context manager; raises ControlUnreachable and ControlRefused.

    `url` such as `http://127.0.0.1:15014`; `token` is the text of `<data>/admin-token`. `others` are the admin URLs of
    more replicas: they are asked, in order, when the one before does not answer within `timeout`.
    """

    def __init__(self, url: str, token: str = "", others: Sequence[str] = (), *, timeout: timedelta = _TIMEOUT) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._others = tuple(other.rstrip("/") for other in others)
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    def elsewhere(self, url: str) -> "AdminClient":
        """Returns a client of another replica of the same cluster: they share the token."""
        return AdminClient(url, self._token, timeout=self._timeout)

    def within(self, timeout: timedelta) -> "AdminClient":
        """Returns a client that waits less, or more, for each answer."""
        return AdminClient(self._url, self._token, self._others, timeout=timeout)

    async def __aenter__(self) -> Self:
        # trust_env stays off: the admin API is never behind the mesh's own http_proxy
        self._session = aiohttp.ClientSession(
            headers={"authorization": f"Bearer {self._token}"} if self._token else {},
            timeout=aiohttp.ClientTimeout(total=self._timeout.total_seconds()),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def status(self) -> StatusReport:
        """Returns the health of the replica that answers."""
        return await self._call("GET", "/v1/status", StatusReport)

    async def clusters(self) -> tuple[ClusterReport, ...]:
        """Returns all members of the mesh, the asked one too, by name."""
        return await self._call("GET", "/v1/clusters", tuple[ClusterReport, ...])

    async def services(self) -> tuple[ServiceReport, ...]:
        """Returns the services known here, by namespace and name."""
        return await self._call("GET", "/v1/services", tuple[ServiceReport, ...])

    async def proxies(self) -> tuple[ProxyReport, ...]:
        """Returns the proxies that are connected to the asked replica (not to others of the cluster), by node id."""
        return await self._call("GET", "/v1/proxies", tuple[ProxyReport, ...])

    async def all_proxies(self) -> tuple[ProxyReport, ...]:
        """Returns the proxies that are connected to any replica, by node id. Silent replicas have none."""
        found: list[ProxyReport] = []
        for url in (await self.status()).replicas:
            with contextlib.suppress(ControlUnreachable):
                async with self.elsewhere(url) as replica:
                    found += await replica.proxies()
        return tuple(sorted(found, key=lambda proxy: proxy.node))

    async def join_request(self, *, fresh: bool = False) -> JoinRequest:
        """Returns the cluster's request to be signed: the same one until it is accepted, or a `fresh` one instead."""
        return await self._call("POST" if fresh else "GET", "/v1/join-request", JoinRequest)

    async def join(self, grant: Grant) -> StatusReport:
        """Hands over a grant: the cluster becomes a member. Raises ControlRefused when the grant does not fit."""
        return await self._call("POST", "/v1/join", StatusReport, body=grant)

    async def member(self) -> Introduction:
        """Returns the asked cluster as it introduces itself to others (for `join --via`)."""
        return await self._call("GET", "/v1/member", Introduction)

    async def create_token(
        self,
        namespace: str,
        account: str,
        role: str = "sidecar",
        *,
        ttl: timedelta | None = None,
        once: bool = False,
    ) -> TokenReport:
        """Makes a join token for proxies of one service account; `role` is "sidecar" or "gateway".

        Without `ttl` (whole seconds) it is good until it is revoked; `once` it admits one proxy, the first to show it.
        """
        seconds = None if ttl is None else int(ttl.total_seconds())
        body = {"namespace": namespace, "account": account, "role": role, "ttl": seconds, "once": once}
        return await self._call("POST", "/v1/tokens", TokenReport, body=body)

    async def tokens(self) -> tuple[KnownTokenReport, ...]:
        """Returns the join tokens as they are kept: never the tokens themselves."""
        return await self._call("GET", "/v1/tokens", tuple[KnownTokenReport, ...])

    async def revoke_token(self, token: str) -> KnownTokenReport:
        """Removes the join token with that id: the streams that it admitted end at once."""
        return await self._call("DELETE", f"/v1/tokens/{quote(token, safe='')}", KnownTokenReport)

    async def trust(self) -> TrustReport:
        """Returns whom the cluster believes, what its proxies have taken of it, and what its peers say of theirs."""
        return await self._call("GET", "/v1/trust", TrustReport)

    async def deliver(self, bundles: Sequence[TrustBundle] = (), grants: Sequence[Grant] = ()) -> TrustReport:
        """Hands over what the root signed, for this cluster or to be passed on: all of it is taken, or nothing."""
        body = {"bundles": bundles, "grants": grants}
        return await self._call("POST", "/v1/trust/documents", TrustReport, body=body)

    async def revocations(self) -> tuple[RevocationReport, ...]:
        """Returns who is believed no longer in this cluster, by whose word, by subject."""
        return await self._call("GET", "/v1/revocations", tuple[RevocationReport, ...])

    async def revoke(self, subject: str, *, reason: str = "", sever: bool = False) -> RevocationReport:
        """Has this cluster, alone, believe a cluster or a workload no longer; `subject` as a Revocation prints it."""
        body = {"subject": subject, "reason": reason, "sever": sever}
        return await self._call("POST", "/v1/revocations", RevocationReport, body=body)

    async def restore(self, subject: str) -> tuple[RevocationReport, ...]:
        """Undoes `revoke`; returns who is still believed no longer. Raises ControlRefused when the root revoked it."""
        path = f"/v1/revocations/{quote(subject, safe='/@')}"
        return await self._call("DELETE", path, tuple[RevocationReport, ...])

    async def drains(self) -> tuple[DrainReport, ...]:
        """Returns which members calls are leaving, as this cluster sees it."""
        return await self._call("GET", "/v1/drains", tuple[DrainReport, ...])

    async def drain(self, order: DrainOrder) -> tuple[DrainReport, ...]:
        """Has calls leave a member: all calls of the mesh when this is that member, else those of this cluster."""
        return await self._call("POST", "/v1/drains", tuple[DrainReport, ...], body=order)

    async def undrain(self, cluster: str, service: str = "") -> tuple[DrainReport, ...]:
        """Undoes `drain`, for one service or for the cluster as a whole."""
        query = f"?service={quote(service)}" if service else ""
        return await self._call("DELETE", f"/v1/drains/{quote(cluster)}{query}", tuple[DrainReport, ...])

    async def load(self) -> LoadReport:
        """Returns what the proxies of this one replica carry."""
        return await self._call("GET", "/v1/load", LoadReport)

    async def leave(self) -> StatusReport:
        """Has this cluster leave the mesh."""
        return await self._call("POST", "/v1/leave", StatusReport)

    async def come_back(self) -> StatusReport:
        """Has this cluster come back into the mesh that it left."""
        return await self._call("DELETE", "/v1/leave", StatusReport)

    async def forget(self, cluster: str) -> tuple[ClusterReport, ...]:
        """Has this cluster forget a member; returns whom it still knows."""
        return await self._call("DELETE", f"/v1/members/{quote(cluster)}", tuple[ClusterReport, ...])

    async def _call(self, method: str, path: str, answer: type[_Answer], *, body: object = None) -> _Answer:
        if self._session is None:
            raise RuntimeError("AdminClient is used outside of its `async with`")
        data = None if body is None else msgspec.json.encode(body)
        while True:
            try:
                async with self._session.request(method, self._url + path, data=data) as response:
                    status, text = response.status, await response.read()
                break
            except (aiohttp.ClientError, TimeoutError) as error:
                if not self._others:
                    raise ControlUnreachable(
                        f"no answer from the control plane at {self._url}: {self._reason(error)}",
                        "is it running? `isthmus lab status` shows a lab; --cluster and --admin name another one",
                    ) from error
                self._url, *rest = self._others
                self._others = tuple(rest)
        try:
            if status >= 400:
                refusal = msgspec.json.decode(text, type=ErrorReport)
                raise ControlRefused(refusal.error, refusal.hint, status)
            return msgspec.json.decode(text, type=answer)
        except msgspec.MsgspecError as error:
            raise ControlRefused(
                f"{self._url}{path} answered {status} with something else: {error}",
                "is this the admin address of a control plane of the same version?",
                status,
            ) from error

    def _reason(self, error: aiohttp.ClientError | TimeoutError) -> str:
        """Returns why there was no answer, in the words of the system where it has some."""
        match error:
            case aiohttp.ClientConnectorError(os_error=OSError(errno=int(code))) if code > 0:
                return os.strerror(code)
            case TimeoutError():
                return f"nothing came within {self._timeout.total_seconds():.0f} s"
            case _:
                return str(error) or type(error).__name__
