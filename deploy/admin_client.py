"""Talks to the admin API of a control plane: what the commands and the lab ask of it."""

from typing import Self, TypeVar

import aiohttp
import msgspec

from deploy.failures import CommandFailed
from federation.reports import (
    ClusterReport,
    ErrorReport,
    ProxyReport,
    ServiceReport,
    StatusReport,
    TokenReport,
)
from trust.joining import Grant, Introduction, JoinRequest

_Answer = TypeVar("_Answer")

_TIMEOUT = 10.0  # seconds: the control plane may wait for its etcd for a few


class ControlUnreachable(CommandFailed):
    """Nobody answered at the address of the admin API, or not in time."""


class ControlRefused(CommandFailed):
    """The control plane understood and said no; `status` is the HTTP status."""

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


class AdminClient:
    """The admin API of one control plane. An async context manager; raises ControlUnreachable and ControlRefused.

    `url` such as `http://127.0.0.1:15014`; `token` is the text of `<data>/admin-token`.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    def elsewhere(self, url: str) -> "AdminClient":
        """Returns a client of another replica of the same cluster: they share the token."""
        return AdminClient(url, self._token)

    async def __aenter__(self) -> Self:
        # trust_env stays off: the admin API is never behind the mesh's own http_proxy
        self._session = aiohttp.ClientSession(
            headers={"authorization": f"Bearer {self._token}"} if self._token else {},
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT),
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

    async def join_request(self) -> JoinRequest:
        """Returns the cluster's request to be signed: the same one until it is granted."""
        return await self._call("GET", "/v1/join-request", JoinRequest)

    async def join(self, grant: Grant) -> StatusReport:
        """Hands over a grant: the cluster becomes a member. Raises ControlRefused when the grant does not fit."""
        return await self._call("POST", "/v1/join", StatusReport, body=grant)

    async def member(self) -> Introduction:
        """Returns the asked cluster as it introduces itself to others (for `join --via`)."""
        return await self._call("GET", "/v1/member", Introduction)

    async def create_token(self, namespace: str, account: str, role: str = "sidecar") -> TokenReport:
        """Makes a join token for proxies of one service account; `role` is "sidecar" or "gateway"."""
        body = {"namespace": namespace, "account": account, "role": role}
        return await self._call("POST", "/v1/tokens", TokenReport, body=body)

    async def _call(self, method: str, path: str, answer: type[_Answer], *, body: object = None) -> _Answer:
        if self._session is None:
            raise RuntimeError("AdminClient is used outside of its `async with`")
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, self._url + path, data=data) as response:
                text = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise ControlUnreachable(
                f"no answer from the control plane at {self._url}: {reason}",
                "is it running? `isthmus lab status` shows a lab; --admin names another control plane",
            ) from error
        try:
            if response.status >= 400:
                refusal = msgspec.json.decode(text, type=ErrorReport)
                raise ControlRefused(refusal.error, refusal.hint, response.status)
            return msgspec.json.decode(text, type=answer)
        except msgspec.MsgspecError as error:
            raise ControlRefused(
                f"{self._url}{path} answered {response.status} with something else: {error}",
                "is this the admin address of a control plane of the same version?",
                response.status,
            ) from error
