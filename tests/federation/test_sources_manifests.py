"""The manifest source on real files: edits as editors, kubelets and people make them reach the picture."""

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from federation.model import Severity
from federation.snapshot import EMPTY, Replace, Section, Snapshot, apply
from federation.sources.assembly import assemble, listing
from federation.sources.manifests import ManifestSource
from federation.sources.tree import ManifestTree
from federation.store import MeshStore

PATIENCE = 60  # seconds until a test gives up waiting


def service(name: str, port: object = 80) -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n"
        f"spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: {port}}}]}}\n"
    )


def ports(snapshot: Snapshot) -> dict[str, int]:
    return {key.name: value.ports[0].number for key, value in snapshot.services.items()}


@asynccontextmanager
async def following(*paths: Path) -> AsyncIterator[MeshStore]:
    store = MeshStore(frozenset({"source"}))
    async with asyncio.TaskGroup() as group:
        source = group.create_task(ManifestSource(paths).run(store))
        yield store
        source.cancel()


async def until(store: MeshStore, holds: Callable[[Snapshot], bool]) -> Snapshot:
    async with asyncio.timeout(PATIENCE):
        while not holds(store.snapshot):
            await store.wait_newer(store.snapshot.revision)
    return store.snapshot


async def until_ports(store: MeshStore, **expected: int) -> Snapshot:
    return await until(store, lambda now: ports(now) == expected)


async def ready(store: MeshStore) -> Snapshot:
    async with asyncio.timeout(PATIENCE):
        return await store.wait_ready()


def replace(path: Path, text: str) -> None:
    """Writes a file as careful programs do: beside it, then renamed over it."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.rename(path)


async def test_files_and_folders_are_listed_at_any_depth(tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "a.yaml").write_text(service("a"))
    (folder / "deep" / "b.yml").write_text(service("b"))
    (folder / "deep" / "deeper" / "c.json").write_text(
        '{\n\t"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c", "namespace": "shop"},\n'
        '\t"spec": {"selector": {"a": "b"}, "ports": [{"port": 80, "appProtocol": "http"}]}}\n'
    )
    (tmp_path / "single.txt").write_text(service("d"))
    for ignored in ("README.md", ".a.yaml.swp", ".hidden.yaml", "#e.yaml#", "e.yaml~"):
        (folder / ignored).write_text(service("e"))
    (folder / ".git").mkdir()
    (folder / ".git" / "f.yaml").write_text(service("f"))
    async with following(folder, tmp_path / "single.txt") as store:
        snapshot = await ready(store)
    assert ports(snapshot) == {"a": 80, "b": 80, "c": 80, "d": 80}
    assert snapshot.findings == {}
    assert {section: len(values) for section, values in listing(assemble(ManifestTree((folder,)).read())).items()} == {
        Section.SERVICES: 3,
        Section.EXPORTS: 0,
        Section.PODS: 0,
        Section.POLICIES: 0,
    }


async def test_an_empty_folder_is_a_listing_too(tmp_path: Path) -> None:
    async with following(tmp_path) as store:
        assert ports(await ready(store)) == {}


async def test_an_edit_takes_effect_and_its_moment_is_known(tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    path.write_text(service("cart"))
    async with following(tmp_path) as store:
        revision = (await ready(store)).revision
        started = datetime.now(UTC)
        path.write_text(service("cart", 81))
        await until_ports(store, cart=81)
        since = store.changed_since(revision)
        assert since is not None
        assert started <= since[0] <= datetime.now(UTC)
        assert since[1] is False
        replace(path, service("cart", 82))
        await until_ports(store, cart=82)
        with path.open("a") as file:
            file.write("---\n" + service("pay"))
        await until_ports(store, cart=82, pay=80)
        path.rename(tmp_path / "renamed.yaml")
        (tmp_path / "other.yaml").write_text(service("other"))
        await until_ports(store, cart=82, pay=80, other=80)
        (tmp_path / "renamed.yaml").unlink()
        await until_ports(store, other=80)


async def test_an_edit_of_the_same_size_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    path.write_text(service("cart", 10))
    tree = ManifestTree((tmp_path,))
    for port in range(11, 60):
        status = path.stat()
        path.write_text(service("cart", port))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert ports(apply(EMPTY, [Replace(Section.SERVICES, listing(assemble(tree.read()))[Section.SERVICES])])) == {
            "cart": port
        }


async def test_folders_that_are_created_later_are_followed(tmp_path: Path) -> None:
    async with following(tmp_path) as store:
        await ready(store)
        for depth in range(1, 6):
            folder = tmp_path.joinpath(*(["deeper"] * depth))
            folder.mkdir()
            (folder / f"s{depth}.yaml").write_text(service(f"s{depth}"))
        await until(store, lambda now: len(now.services) == 5)
        (tmp_path / "deeper" / "deeper" / "s2.yaml").write_text(service("s2", 99))
        await until(store, lambda now: ports(now)["s2"] == 99)
        shutil.rmtree(tmp_path / "deeper" / "deeper")
        await until_ports(store, s1=80)


async def test_what_was_asked_for_and_does_not_exist_is_told_and_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    there = tmp_path / "there.yaml"
    there.write_text(service("there"))
    async with following(there, folder) as store:
        snapshot = await until(store, lambda now: str(folder) in now.findings)
        assert ports(snapshot) == {"there": 80}
        (finding,) = snapshot.findings[str(folder)]
        assert finding.severity is Severity.ERROR
        assert "No such file" in finding.message
        assert not store.is_ready, "an empty picture must not be pushed because a mount is late"
        folder.mkdir()
        (folder / "cart.yaml").write_text(service("cart"))
        await ready(store)
        snapshot = await until_ports(store, there=80, cart=80)
        assert snapshot.findings == {}


async def test_a_folder_that_disappears_takes_nothing_with_it_and_is_followed_when_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "cart.yaml").write_text(service("cart"))
    (folder / "pay.yaml").write_text(service("pay"))
    async with following(folder) as store:
        await ready(store)
        folder.rename(tmp_path / "away")
        snapshot = await until(store, lambda now: str(folder) in now.findings)
        assert ports(snapshot) == {"cart": 80, "pay": 80}
        folder.mkdir()
        (folder / "cart.yaml").write_text(service("cart", 81))
        snapshot = await until_ports(store, cart=81)
        assert snapshot.findings == {}
        for port in range(82, 85):  # the new folder is watched, not only its name
            (folder / "cart.yaml").write_text(service("cart", port))
            await until_ports(store, cart=port)


async def test_a_broken_object_keeps_its_last_good_state_until_it_is_mended(tmp_path: Path) -> None:
    path, other = tmp_path / "cart.yaml", tmp_path / "other.yaml"
    path.write_text(service("cart") + "---\n" + service("pay"))
    async with following(tmp_path) as store:
        await ready(store)
        path.write_text(service("cart", "x") + "---\n" + service("pay", 81))
        snapshot = await until(store, lambda now: str(path) in now.findings)
        assert ports(snapshot) == {"cart": 80, "pay": 81}
        assert [(each.line, each.object) for each in snapshot.findings[str(path)]] == [(4, "Service shop/cart")]
        path.write_text("a: [\n")
        other.write_text(service("other"))
        snapshot = await until(store, lambda now: "other" in ports(now))
        assert ports(snapshot) == {"cart": 80, "pay": 81, "other": 80}
        path.write_bytes(b"a: \xff\n")
        await until(store, lambda now: "UTF-8" in now.findings[str(path)][0].message)
        path.write_text(service("cart", 82))
        snapshot = await until_ports(store, cart=82, other=80)
        assert snapshot.findings == {}


async def test_of_equal_objects_in_two_files_the_first_counts_and_the_second_takes_over(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    second.write_text(service("cart", 82))
    async with following(tmp_path) as store:
        await ready(store)
        first.write_text(service("cart", 81))
        snapshot = await until_ports(store, cart=81)
        assert list(snapshot.findings) == [str(second)]
        first.unlink()
        snapshot = await until_ports(store, cart=82)
        assert snapshot.findings == {}


async def test_an_editor_that_empties_the_file_before_it_writes_never_takes_a_service_away(tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    path.write_text(service("cart", 1))
    async with following(tmp_path) as store, asyncio.TaskGroup() as group:
        await ready(store)
        seen: list[Snapshot] = []

        async def record() -> None:
            revision = -1
            while True:
                seen.append(await store.wait_newer(revision))
                revision = seen[-1].revision

        recorder = group.create_task(record())
        for port in range(2, 22):
            if port % 2:
                path.write_text("")
            else:
                path.rename(tmp_path / "cart.yaml~")  # as editors that keep a backup do
            await asyncio.sleep(0.001 * port)  # the watcher may well look now
            path.write_text(service("cart", port))
            await until_ports(store, cart=port)
        recorder.cancel()
    assert len(seen) > 2
    assert all("cart" in ports(snapshot) for snapshot in seen)


async def test_the_swapped_link_of_a_mounted_config_map_is_seen(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()

    def publish(version: str, text: str) -> None:
        (mount / f"..{version}").mkdir()
        (mount / f"..{version}" / "cart.yaml").write_text(text)
        (mount / "..data_tmp").symlink_to(f"..{version}")
        (mount / "..data_tmp").rename(mount / "..data")

    publish("1", service("cart", 81))
    (mount / "cart.yaml").symlink_to("..data/cart.yaml")
    async with following(mount) as store:
        assert ports(await ready(store)) == {"cart": 81}
        publish("2", service("cart", 82))
        snapshot = await until_ports(store, cart=82)
        assert snapshot.findings == {}


async def test_links_are_followed_once_and_a_link_to_nowhere_is_told(tmp_path: Path) -> None:
    real, folder = tmp_path / "real", tmp_path / "folder"
    real.mkdir()
    folder.mkdir()
    (real / "cart.yaml").write_text(service("cart"))
    (folder / "linked").symlink_to(real)
    (real / "circle").symlink_to(folder)
    (folder / "nowhere.yaml").symlink_to("missing")
    async with following(folder) as store:
        snapshot = await ready(store)
        assert ports(snapshot) == {"cart": 80}
        assert list(snapshot.findings) == [str(folder / "nowhere.yaml")]
        (real / "cart.yaml").write_text(service("cart", 81))  # outside of what is watched: found by looking
        await until_ports(store, cart=81)


@pytest.mark.parametrize("seed", range(3))
async def test_random_edits_end_in_the_picture_of_a_listing(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    folders = [tmp_path, tmp_path / "x", tmp_path / "x" / "y"]

    def edit() -> None:
        folder = dice.choice(folders)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / dice.choice(["a.yaml", "b.yaml"])
        match dice.randrange(8):
            case 0:
                path.unlink(missing_ok=True)
            case 1 if path.exists():
                path.rename(folder / dice.choice(["a.yaml", "b.yaml", "gone.txt"]))
            case 2 if folder != tmp_path:
                shutil.rmtree(folder)
            case 3:
                path.write_text("a: [\n")
            case 4:
                path.write_text(service("cart", "x"))
            case 5:
                replace(path, service(dice.choice(["cart", "pay"]), dice.randrange(1, 100)))
            case _:
                path.write_text(service(dice.choice(["cart", "pay"]), dice.randrange(1, 100)))

    async with following(tmp_path) as store:
        await ready(store)
        for _ in range(120):
            edit()
            await asyncio.sleep(dice.choice([0, 0.001, 0.02]))
        # What stays in force of what is broken at the end depends on what was good before: mend everything.
        for path in [path for folder in folders for path in folder.glob("*.yaml")]:
            path.write_text(service(path.stem + str(len(path.parts)), dice.randrange(1, 100)))
        (tmp_path / "last.yaml").write_text(service("last"))
        listed = assemble(ManifestTree((tmp_path,)).read())
        expected = apply(EMPTY, [Replace(section, values) for section, values in listing(listed).items()])
        snapshot = await until(store, lambda now: now.services == expected.services)
        assert snapshot.findings == listed.findings
