"""A call survives the loss of a pod, a sidecar, a gateway and a whole cluster."""

from pathlib import Path

from tests.support.mesh import Isthmus, eventually
from tests.system.conftest import CART

CLIENT = "east/shop/client"


def test_one_sick_remote_pod_is_ejected_alone(mesh: Isthmus, sick: Path) -> None:
    mesh.lab("kill", "east/shop/cart")
    mesh.lab("kill", "south")
    (sick / "west-cart-2").touch()
    try:
        answers = mesh.sequential(CLIENT, CART, 200)
    finally:
        (sick / "west-cart-2").unlink()
    ejected, others = answers.pop("503 west/a/shop/cart-2"), sum(answers.values())
    assert set(answers) == {"200 west/a/shop/cart-1", "200 west/a/shop/cart-3"}
    assert ejected <= 12, "three answers eject it, and three more after each time that it is let in again"
    assert all(count > others / 3 for count in answers.values()), answers


def test_no_get_fails_while_a_gateway_is_lost(mesh: Isthmus) -> None:
    mesh.lab("kill", "east/shop/cart")
    load = mesh.start_load(CLIENT, CART, rate=100)
    eventually(lambda: mesh.sequential(CLIENT, CART, 1))
    mesh.lab("kill", "west/gateway-1")
    eventually(lambda: mesh.sequential(CLIENT, CART, 10))
    mesh.lab("start", "west/gateway-1")
    report = load.report()
    assert report["failedByMethod"].get("GET", 0) == 0, report


def test_no_get_fails_while_pods_come_and_go(mesh: Isthmus) -> None:
    load = mesh.start_load(CLIENT, CART, rate=100)
    eventually(lambda: mesh.sequential(CLIENT, CART, 1))
    mesh.lab("kill", "east/shop/cart-1/app")
    assert set(mesh.sequential(CLIENT, CART, 10)) == {"200 east/b/shop/cart-2"}
    mesh.lab("kill", "east/shop/cart-2/sidecar")
    assert {answer.split("/")[0] for answer in mesh.sequential(CLIENT, CART, 10)} == {"200 west"}
    mesh.lab("start", "east")
    eventually(lambda: set(mesh.sequential(CLIENT, CART, 10)) == {"200 east/a/shop/cart-1"})
    report = load.report()
    assert report["failedByMethod"].get("GET", 0) == 0, report
