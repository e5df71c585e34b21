"""A folder of Kubernetes YAML as a source of the mesh: an edit takes effect without a restart.

File events only say when to look; what there is to see is found by looking at the whole tree. So links that are
swapped (a mounted ConfigMap), lost events and folders without events are all the same, only slower.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from watchfiles import Change as FileChange
from watchfiles import awatch

from federation.snapshot import Change, Replace
from federation.sources import assembly
from federation.sources.assembly import Assembly
from federation.sources.tree import ManifestTree
from federation.store import MeshStore

ORIGIN = "source"

_STEP = 10  # ms without a further event end a burst: an editor's save is several
_DEBOUNCE = 50  # ms after which a burst is looked at even if it goes on
_RESCAN = timedelta(seconds=1)
"""How often to look without an event: what was created before its folder was watched, file systems without events."""
_RESCAN_SHARE = 50  # looking takes at most one part in so many of the time, however many files there are
_SETTLE = timedelta(milliseconds=50)
"""A removal must be seen twice, so far apart: an editor empties the file that it is about to write."""
_SETTLE_LOOKS = 5

_Target = tuple[str, int]  # a folder and its inode: one that was deleted and made again needs a new watch

log = logging.getLogger(__name__)


class ManifestSource:
    """Keeps the picture equal to what some files and folders say."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        """Takes files and folders; those that do not exist yet are waited for before the source counts as listed."""
        self._paths = paths
        self._tree = ManifestTree(paths)
        self._wake = asyncio.Event()

    async def run(self, store: MeshStore) -> None:
        """Lists everything, then follows; never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(self._folders, is_recursive=True))
            group.create_task(self._watch(self._parents, is_recursive=False))
            group.create_task(self._follow(store))

    async def _follow(self, store: MeshStore) -> None:
        current, is_listed = assembly.NOTHING, False
        while True:
            seen_at = datetime.now(UTC)
            self._wake.clear()
            started = time.monotonic()
            following = await self._look(current)
            cost = time.monotonic() - started
            following = await self._settled(current, following)
            differences: list[Change | Replace] = list(assembly.changes(current, following))
            is_whole = not await asyncio.to_thread(self._tree.missing)
            if is_whole and not is_listed:
                differences = [Replace(section, values) for section, values in assembly.listing(following).items()]
                differences += assembly.changes(current, following)
            if differences:
                store.apply(differences, at=seen_at)
                _report(current, following)
            current = following
            if is_whole and not is_listed:
                is_listed = True
                store.mark_listed(ORIGIN)
            await self._wait(max(_RESCAN.total_seconds(), cost * _RESCAN_SHARE))

    async def _look(self, before: Assembly) -> Assembly:
        return await asyncio.to_thread(lambda: assembly.assemble(self._tree.read(), before))

    async def _settled(self, before: Assembly, following: Assembly) -> Assembly:
        """Looks again until no more has disappeared than the time before."""
        gone = assembly.removed(before, following)
        for _ in range(_SETTLE_LOOKS):
            if not gone:
                break
            await asyncio.sleep(_SETTLE.total_seconds())
            following = await self._look(before)
            still_gone = assembly.removed(before, following)
            if still_gone <= gone:
                break
            gone = still_gone
        return following

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _watch(self, targets: Callable[[], frozenset[_Target]], *, is_recursive: bool) -> None:
        """Wakes `_follow` when something happens in the targets. Without a watch, its own pace has to do."""
        names = {path.name for path in self._paths}

        def matters(_: FileChange, path: str) -> bool:
            return is_recursive or os.path.basename(path) in names

        while True:
            watched = await asyncio.to_thread(targets)
            if watched:
                try:
                    async for events in awatch(
                        *(path for path, _ in watched),
                        watch_filter=matters,
                        debounce=_DEBOUNCE,
                        step=_STEP,
                        rust_timeout=int(_RESCAN.total_seconds() * 1000),
                        yield_on_timeout=True,
                        recursive=is_recursive,
                        ignore_permission_denied=True,
                    ):
                        if events:
                            self._wake.set()
                        if await asyncio.to_thread(targets) != watched:
                            break
                    continue
                except (OSError, RuntimeError) as error:  # RuntimeError: how watchfiles names all other refusals
                    log.warning("manifests cannot be watched, they are read every second", extra={"reason": str(error)})
            await asyncio.sleep(_RESCAN.total_seconds())

    def _folders(self) -> frozenset[_Target]:
        """The given folders that exist."""
        return _existing(path for path in self._paths if path.is_dir())

    def _parents(self) -> frozenset[_Target]:
        """What the given files and folders are in: where they appear, are replaced and disappear."""
        return _existing(path.parent for path in self._paths)


def _existing(folders: Iterable[Path]) -> frozenset[_Target]:
    existing: set[_Target] = set()
    for folder in folders:
        try:
            existing.add((str(folder), folder.stat().st_ino))
        except OSError:
            continue
    return frozenset(existing)


def _report(before: Assembly, after: Assembly) -> None:
    """Logs each finding once, when it appears."""
    known = {finding for findings in before.findings.values() for finding in findings}
    for findings in after.findings.values():
        for finding in findings:
            if finding not in known:
                fields = {"where": f"{finding.where}:{finding.line}", "object": finding.object, "field": finding.field}
                log.warning("manifest has a finding", extra={**fields, "why": finding.message, "hint": finding.hint})
