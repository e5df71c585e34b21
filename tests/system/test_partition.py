"""The control plane, etcd and the links between clusters may go; traffic does not notice, and what changed arrives."""

from typing import Any

import yaml

from tests.support.mesh import Isthmus, eventually
from tests.system.conftest import CART

CLIENT = "east/shop/client"


def removed_resources(mesh: Isthmus) -> dict[str, int]:
    """Returns how many clusters and listeners the client's Envoy ever lost, by its own count."""
    out = mesh.execute(
        CLIENT,
        *("curl", "-sS", "--noproxy", "*"),
        f"http://{mesh.address(f'{CLIENT}-1/sidecar')}:15000/stats?filter=(cluster|listener)_removed$",
    )
    return {line.split(": ")[0]: int(line.split(": ")[1]) for line in out.splitlines()}


def state_of(mesh: Isthmus, observer: str, member: str) -> Any:
    return next(row["state"] for row in mesh.ask(observer, "clusters") if row["name"] == member)


def test_traffic_goes_on_without_control_plane_and_etcd_and_changes_arrive_later(mesh: Isthmus) -> None:
    before = removed_resources(mesh)
    manifest = mesh.folder / "east" / "basket.yaml"
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "basket", "namespace": "shop"},
        "spec": {"selector": {"app": "cart"}, "ports": [{"port": 80, "targetPort": 8080, "appProtocol": "http"}]},
    }
    load = mesh.start_load(CLIENT, CART, rate=100)
    try:
        for piece in ("east/control", "east/etcd"):
            mesh.lab("kill", piece)
        manifest.write_text(yaml.safe_dump(service))
        assert mesh.sequential(CLIENT, "http://basket.shop/", 1) == {"502 ": 1}
        for piece in ("east/etcd", "east/control"):
            mesh.lab("start", piece)
        eventually(lambda: mesh.sequential(CLIENT, "http://basket.shop/", 1) == {"200 east/a/shop/cart-1": 1})
        report = load.report()
        assert report["failed"] == 0, report
        assert removed_resources(mesh) == before
    finally:
        manifest.unlink()
    eventually(lambda: mesh.sequential(CLIENT, "http://basket.shop/", 1) == {"502 ": 1})


def test_a_partition_is_shown_and_local_traffic_does_not_notice(mesh: Isthmus) -> None:
    load = mesh.start_load(CLIENT, CART, rate=100)
    mesh.lab("cut", "east", "west")
    eventually(lambda: state_of(mesh, "east", "west") == state_of(mesh, "west", "east") == "stale")
    assert state_of(mesh, "east", "south") == "live"
    mesh.lab("heal", "east", "west")
    eventually(lambda: state_of(mesh, "east", "west") == state_of(mesh, "west", "east") == "live")
    report = load.report()
    assert report["failed"] == 0, report


def test_calls_move_on_to_the_next_cluster_when_the_link_refuses(mesh: Isthmus) -> None:
    mesh.lab("kill", "east/shop/cart")
    mesh.lab("cut", "east", "west", "--refuse")
    eventually(lambda: set(mesh.sequential(CLIENT, CART, 10)) == {"200 south/a/shop/cart-1"})
    mesh.lab("heal", "east", "west")
    eventually(lambda: {name.split("/")[0] for name in mesh.sequential(CLIENT, CART, 10)} == {"200 west"})


def test_what_a_peer_changes_arrives(mesh: Isthmus) -> None:
    folder = mesh.folder / "west"
    manifest, url = folder / "more.yaml", "http://more.shop.svc.clusterset.local/"
    metadata = {"name": "more", "namespace": "shop"}
    objects = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": {"app": "cart"}, "ports": [{"port": 80, "targetPort": 8080, "appProtocol": "http"}]},
        },
        {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport", "metadata": metadata},
    ]
    for _ in range(2):  # what was removed may come again
        manifest.write_text(yaml.safe_dump_all(objects))
        eventually(lambda: {name.split("/")[0] for name in mesh.sequential(CLIENT, url, 6)} == {"200 west"})
        manifest.unlink()
        eventually(lambda: mesh.sequential(CLIENT, url, 1) == {"502 ": 1})


def test_a_broken_object_is_shown_and_keeps_its_last_good_state(mesh: Isthmus) -> None:
    manifest = mesh.folder / "east" / "services.yaml"
    good = manifest.read_text()
    try:
        manifest.write_text(good.replace("port: 80\n", "port: 800000\n"))
        status = eventually(lambda: [one for one in mesh.ask("east", "status")["findings"] if one["line"] > 0])
        assert status[0]["object"] == "Service shop/cart"
        assert status[0]["field"] == "spec.ports[0].port"
        assert mesh.sequential(CLIENT, CART, 5) == {"200 east/a/shop/cart-1": 5}
    finally:
        manifest.write_text(good)
    eventually(lambda: not mesh.ask("east", "status")["findings"])
