"""Runs real control planes for tests: the command `isthmus control` as a process, and the command line against it."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TypeVar

import msgspec
import yaml
from aiohttp import web

from deploy.admin_client import AdminClient
from deploy.lab.state import write_atomically
from federation.model import Locality
from federation.xds.bootstrap import TRUST_BUNDLE_FILE, bootstrap, token_file
from tests.support.addresses import free_address
from tests.support.command_line import Command
from tests.support.envoy import DRAIN_OPTIONS, Envoy, start_envoy
from tests.support.etcd import start_etcd
from trust.root import Root
from trust.spiffe import ClusterName, control_dns_name, control_identity, spiffe_id

Answer = TypeVar("Answer")

PATIENCE = timedelta(seconds=90)
"""Deadline of every wait here: generous, because two noisy cores are shared by many tests."""

DOMAIN = "mesh.test"
_ISTHMUS = (sys.executable, "-m", "deploy.cli.main")


class Ran(msgspec.Struct, frozen=True):
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str


async def isthmus(*arguments: str, contexts: Path | None = None, stdin: str = "") -> Ran:
    """Runs the command line to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ISTHMUS_")}
    environment = inherited | ({"ISTHMUS_CONTEXTS": str(contexts)} if contexts else {})
    if not stdin and "control" not in arguments:
        with TemporaryDirectory(prefix="isthmus-") as folder:
            command = Command(arguments, environment, Path(folder) / "said")
            stdout, stderr = await asyncio.to_thread(command.communicate, PATIENCE.total_seconds())
        return Ran(command.returncode or 0, stdout, stderr)
    process = await asyncio.create_subprocess_exec(
        *_ISTHMUS,
        *arguments,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            said, complained = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
    return Ran(process.returncode or 0, said.decode(), complained.decode())


class Control:
    """One control plane replica, whose data directory survives `kill`."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        etcd: str,
        arguments: Sequence[str],
        replica: str = "control-1",
        manifests: str = "manifests",
        environment: Mapping[str, str] = MappingProxyType({}),
        address: str = "",
    ) -> None:
        """Replicas of one cluster share the folder, and in it that of the manifests unless told otherwise.

        `address` is a free one unless given: replicas that know of each other need theirs beforehand.
        """
        address = address or free_address()
        self.name = name
        self.etcd = etcd
        self.folder = folder
        self.address = address
        self.data = folder / "control"
        self.manifests = folder / manifests
        self.manifests.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"{replica}.log"
        self._command = (
            *_ISTHMUS,
            *("control", "--cluster", name, "--domain", DOMAIN, "--etcd", etcd, "--data", str(self.data)),
            *("--manifests", str(self.manifests), "--address", address, "--name", replica, *arguments),
        )
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def context(self) -> Mapping[str, str]:
        """Where the command line finds this control plane."""
        return {"admin": f"http://{self.address}:15014", "token_file": str(self.data / "admin-token")}

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    async def start(self) -> None:
        """Starts the process and returns when its admin API answers."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env={**os.environ, **self._environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while not is_listening(self.address, 15014):
                assert self._process.returncode is None, f"control plane of {self.name} ended:\n{self.log}"
                await asyncio.sleep(0.02)

    def client(self, token: str | None = None) -> AdminClient:
        """Returns a client of the admin API, with the right token unless another is given."""
        if token is None:
            token = (self.data / "admin-token").read_text().strip()
        return AdminClient(self.context["admin"], token)

    async def stop(self) -> int:
        """Asks the process to end (SIGTERM) and returns its exit code."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> int:
        """Kills the process (SIGKILL)."""
        return await self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freezes the process (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused process go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, f"the control plane of {self.name} is not running"
        self._process.send_signal(number)

    async def _end(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(how)
        try:
            async with asyncio.timeout(60):
                return await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError(f"the control plane of {self.name} did not end:\n{self.log}") from None

    def write(self, file: str, *objects: Mapping[str, object]) -> None:
        """Puts Kubernetes objects into a file of the manifests folder."""
        draft = self.manifests / f".{file}.draft"
        draft.write_text(yaml.safe_dump_all(objects))
        draft.rename(self.manifests / file)


@asynccontextmanager
async def start_control(
    folder: Path, name: str = "east", *arguments: str, environment: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Control]:
    """Runs an etcd and a control plane of cluster `name`, with all their files below `folder`.

    `environment` is added to the control plane's.
    """
    etcd_folder = folder / "etcd"
    await asyncio.to_thread(lambda: etcd_folder.mkdir(parents=True))
    options = arguments if "--region" in arguments else ("--region", "eu", *arguments)
    async with start_etcd(etcd_folder) as etcd:
        control = Control(folder, name, etcd=etcd.url, arguments=options, environment=environment)
        try:
            await control.start()
            yield control
        finally:
            await control.stop()


def is_listening(address: str, port: int) -> bool:
    """Says whether somebody accepts connections on a loopback address."""
    with closing(socket.socket()) as one:
        return one.connect_ex((address, port)) == 0


async def until(ask: Callable[[], Awaitable[Answer]], right: Callable[[Answer], bool]) -> Answer:
    """Asks until the answer is as it should be and returns it."""
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while not right(answer := await ask()):
        assert time.monotonic() < deadline, f"never right: {answer}"
        await asyncio.sleep(0.02)
    return answer


def write_contexts(file: Path, *controls: Control) -> Path:
    """Writes the file by which the command line finds control planes; returns it."""
    write_atomically(file, json.dumps({control.name: control.context for control in controls}))  # commands may run
    return file


def service(name: str, *, namespace: str = "shop", port: int = 80, target: int = 8080) -> dict[str, object]:
    """Makes a Service that selects `app: <name>`."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": "http", "port": port, "targetPort": target, "appProtocol": "http"}],
        },
    }


def export(name: str, *, namespace: str = "shop") -> dict[str, object]:
    """Makes a ServiceExport."""
    return {
        "apiVersion": "multicluster.x-k8s.io/v1beta1",
        "kind": "ServiceExport",
        "metadata": {"name": name, "namespace": namespace},
    }


def pod(name: str, app: str, address: str, *, namespace: str = "shop", zone: str = "a") -> dict[str, object]:
    """Makes a ready Pod with the labels `app: <app>` and the service account `<app>`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app": app, "topology.kubernetes.io/zone": zone},
        },
        "spec": {"serviceAccountName": app, "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
    }


async def join(root: Root, control: Control, via: Control | None = None) -> None:
    """Makes a cluster a member, introduced by `via`, and waits until it serves."""
    async with control.client() as client:
        introductions = []
        if via is not None:
            async with via.client() as other:
                introductions = [await other.member()]
        grant = root.grant(await client.join_request(), now=datetime.now(UTC), introductions=introductions)
        await client.join(grant)
        await until(client.status, lambda status: status.is_ready)


@asynccontextmanager
async def start_proxy(
    control: Control,
    root: Root,
    node: str,
    *,
    address: str,
    account: str,
    zone: str = "a",
    environment: Mapping[str, str] = MappingProxyType({}),
    options: Sequence[str] = DRAIN_OPTIONS,
    others: Sequence[Control] = (),
) -> AsyncIterator[Envoy]:
    """Runs a real Envoy that the control plane configures; `account` is a service account of shop, or "gateway".

    `others` are further replicas of the control plane.
    """
    folder = control.folder / node.replace("/", "-")
    folder.mkdir()
    async with control.client() as client:
        if account == "gateway":
            made = await client.create_token("isthmus-system", "gateway", "gateway")
        else:
            made = await client.create_token("shop", account)
    (folder / "token.json").write_text(token_file(made.token))
    cluster = ClusterName(control.name)
    config = bootstrap(
        node,
        Locality(region="eu", zone=zone),
        address=address,
        control_addresses=[(each.address, 15012) for each in (control, *others)],
        control_dns_name=control_dns_name(cluster, root.domain),
        control_spiffe_id=spiffe_id(control_identity(cluster), root.domain),
        trust_bundle_path=str(control.data / TRUST_BUNDLE_FILE),
        token_path=str(folder / "token.json"),
    )
    async with start_envoy(config, folder=folder, environment=environment, options=options) as envoy:
        yield envoy


@asynccontextmanager
async def start_app(name: str, address: str) -> AsyncIterator[None]:
    """Runs a program on `address`:8080 that answers with its name and the client certificate's SPIFFE id."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"name": name, "caller": request.headers.get("x-forwarded-client-cert", "")})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, 8080).start()
        yield
    finally:
        await runner.cleanup()
