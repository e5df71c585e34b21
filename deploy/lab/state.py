"""Where a lab keeps its files.

    <home>/labs/<name>.lock          held by the lab's process while it lives
    <home>/labs/<name>.log           what a detached lab's process says
    <home>/labs/<name>/              mode 0700, made anew by every `lab up`
        lab.json                     how to reach the lab's process
        contexts.json                admin addresses by cluster, for the command line
        root/                        the root of trust
        logs/                        one file per process
        <cluster>/{etcd,control,pods}/     etcd-1 to etcd-3 where it has three nodes
        <cluster>/proxies/<name>/    bootstrap and token of an Envoy

`<home>` is $ISTHMUS_HOME, or ~/.local/state/isthmus.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from deploy.failures import CommandFailed
from deploy.lab.targets import ProcessId, parse_process
from trust.spiffe import is_dns_label

_MARK = "lab.json"
_MAX_SOCKET_PATH = 100  # bytes; the kernel takes 107 (sockaddr_un), some systems 103


class NameTaken(CommandFailed):
    """A lab of that name is running."""


class Running(msgspec.Struct, frozen=True):
    """What `lab.json` holds: the process of the lab and the Unix socket of its API."""

    name: str
    pid: int
    socket: str
    file: str


class Folder(msgspec.Struct, frozen=True):
    """The files of one lab."""

    name: str
    path: Path

    @property
    def mark(self) -> Path:
        """The file that says which process the lab is."""
        return self.path / _MARK

    @property
    def contexts(self) -> Path:
        """Admin addresses of the clusters, for the command line."""
        return self.path / "contexts.json"

    @property
    def root(self) -> Path:
        """The offline root of the lab's mesh."""
        return self.path / "root"

    @property
    def output(self) -> Path:
        """What a detached lab's own process says; beside the folder, which that process makes anew."""
        return self.path.with_suffix(".log")

    def log(self, process: ProcessId) -> Path:
        """The log of a process."""
        return self.path / "logs" / (str(process).replace("/", ".") + ".log")

    def logs(self) -> dict[ProcessId, Path]:
        """Returns the logs that there are, also after the lab has ended; no part of a process' name has a dot."""
        named = {file: parse_process(file.stem.replace(".", "/")) for file in sorted(self.path.glob("logs/*.log"))}
        return {process: file for file, process in named.items() if process is not None}

    def of(self, cluster: str, *parts: str) -> Path:
        """A folder of a cluster."""
        return self.path.joinpath(cluster, *parts)

    def etcd(self, process: ProcessId) -> Path:
        """The data of an etcd."""
        return self.path.joinpath(str(process))

    def proxy(self, process: ProcessId) -> Path:
        """Bootstrap and token of an Envoy. Sidecars are apart by namespace; no pod is called as a gateway."""
        name = f"{process.namespace}.{process.pod}" if process.pod else str(process.number)
        return self.path / process.cluster / "proxies" / name

    def running(self) -> Running | None:
        """Returns how to reach the lab's process, if there is or was one."""
        try:
            return msgspec.json.decode(self.mark.read_bytes(), type=Running)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None


def folder(name: str) -> Folder:
    """Returns the files of the lab called `name`; raises CommandFailed for an impossible name."""
    if not is_dns_label(name):
        raise CommandFailed(f"{name!r} is not the name of a lab", "lower-case letters, digits and '-', such as lab")
    home = os.environ.get("ISTHMUS_HOME") or Path.home() / ".local" / "state" / "isthmus"
    return Folder(name=name, path=Path(home).absolute() / "labs" / name)


@contextmanager
def claim(lab: Folder) -> Iterator[None]:
    """Owns the lab's name while it lasts; raises NameTaken when another process does."""
    lab.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(lab.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            named = "" if lab.name == "lab" else f" --name {lab.name}"
            raise NameTaken(
                f"the lab {lab.name!r} is running already",
                f"`isthmus lab down{named}` ends it; `isthmus lab up --name OTHER` starts a second one",
            ) from error
        yield
    finally:
        os.close(lock)


def is_claimed(lab: Folder) -> bool:
    """Says whether a process owns the lab's name."""
    try:
        with claim(lab):
            return False
    except NameTaken:
        return True


def make_anew(lab: Folder) -> None:
    """Empties the lab's folder and makes it again; raises CommandFailed when it is not a lab's folder. Blocks."""
    if lab.path.exists():
        if any(lab.path.iterdir()) and not lab.mark.exists():
            raise CommandFailed(
                f"{lab.path} exists and no lab made it", "remove it yourself, or choose another name with --name"
            )
        shutil.rmtree(lab.path)
    lab.path.mkdir(mode=0o700, parents=True)
    lab.mark.write_bytes(b"{}")  # from here on the folder is known as ours, even when the lab dies right now
    (lab.path / "logs").mkdir()


@contextmanager
def socket_path(lab: Folder) -> Iterator[Path]:
    """Gives a path for the API's Unix socket: in the lab's folder, or in a private temporary one if that is long."""
    path = lab.path / "lab.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="isthmus-") as short:
        yield Path(short) / "lab.sock"


def write_atomically(file: Path, text: str, *, mode: int = 0o600) -> None:
    """Replaces a file in one step: a reader sees the old text or the new one. Blocks."""
    temporary = file.with_name(f".{file.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)
    temporary.replace(file)
