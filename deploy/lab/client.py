"""The command line's side of a running lab's API."""

from typing import Self, TypeVar

import aiohttp
import msgspec

from deploy.failures import CommandFailed
from deploy.lab.links import LinkState
from deploy.lab.reports import (
    Action,
    ActionReport,
    ActionRequest,
    EnvironmentReport,
    LabReport,
    LinkReport,
    LinkRequest,
    Refusal,
)
from deploy.lab.state import Folder

_Answer = TypeVar("_Answer")
_TIMEOUT = 30.0  # seconds; to kill a whole cluster takes less than one


class LabNotRunning(CommandFailed):
    """Nobody answers on the lab's socket."""


class LabClient:
    """A running lab. An async context manager; its methods raise LabNotRunning, and CommandFailed for a refusal."""

    def __init__(self, lab: Folder) -> None:
        self._lab = lab
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        running = self._lab.running()
        if running is None:
            raise self._not_running()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(running.socket), timeout=aiohttp.ClientTimeout(total=_TIMEOUT)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def status(self, *, with_memory: bool = False) -> LabReport:
        """Returns everything about the lab."""
        return await self._call("GET", "/v1/status" + ("?memory=1" if with_memory else ""), LabReport)

    async def environment(self, target: str) -> EnvironmentReport:
        """Returns the surroundings of the first process of a target."""
        return await self._call("GET", "/v1/environment", EnvironmentReport, params={"target": target})

    async def act(self, action: Action, target: str) -> ActionReport:
        """Does something to all processes of a target."""
        return await self._call("POST", "/v1/actions", ActionReport, body=ActionRequest(action, target))

    async def set_link(self, one: str, other: str, state: LinkState) -> LinkReport:
        """Cuts or heals what is between two clusters, or a control plane and its etcd."""
        return await self._call("POST", "/v1/links", LinkReport, body=LinkRequest((one, other), state))

    async def down(self) -> LabReport:
        """Asks the lab to end; it takes a moment longer than the answer."""
        return await self._call("POST", "/v1/down", LabReport)

    async def _call(
        self,
        method: str,
        path: str,
        answer: type[_Answer],
        *,
        body: msgspec.Struct | None = None,
        params: dict[str, str] | None = None,
    ) -> _Answer:
        if self._session is None:
            raise RuntimeError("LabClient is used outside of its `async with`")
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, "http://lab" + path, data=data, params=params) as response:
                text = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._not_running() from error
        if response.status != 200:
            refusal = msgspec.json.decode(text, type=Refusal)
            raise CommandFailed(refusal.error, refusal.hint)
        return msgspec.json.decode(text, type=answer)

    def _not_running(self) -> LabNotRunning:
        named = "" if self._lab.name == "lab" else f" --name {self._lab.name}"
        return LabNotRunning(f"the lab {self._lab.name!r} is not running", f"isthmus lab up{named}")
