"""Who answers a call, by name and by distance."""

from tests.support.mesh import Isthmus
from tests.system.conftest import CART

CLIENT = "east/shop/client"


def test_the_nearest_zone_answers_all(mesh: Isthmus) -> None:
    assert mesh.sequential(CLIENT, CART, 50) == {"200 east/a/shop/cart-1": 50}


def test_the_short_names_of_kubernetes_mean_the_local_service(mesh: Isthmus) -> None:
    for name in ("cart", "cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local", "cart.shop:80"):
        assert mesh.sequential(CLIENT, f"http://{name}/", 3) == {"200 east/a/shop/cart-1": 3}, name


def test_the_local_name_never_leaves_the_cluster(mesh: Isthmus) -> None:
    mesh.lab("kill", "east/shop/cart")
    answers = mesh.sequential(CLIENT, "http://cart.shop.svc.cluster.local/", 3)
    assert {answer.partition(" ")[0] for answer in answers} == {"503"}
    assert set(mesh.sequential(CLIENT, CART, 9)) <= {f"200 west/a/shop/cart-{n}" for n in (1, 2, 3)}


def test_a_service_that_only_a_peer_has_is_reached_by_its_mesh_wide_name(mesh: Isthmus) -> None:
    assert mesh.sequential(CLIENT, "http://files.shop.svc.clusterset.local:8000/", 3) == {"200 west/a/shop/files-1": 3}
    assert mesh.sequential(CLIENT, "http://files.shop:8000/", 1) == {"502 ": 1}


def test_remote_pods_share_the_calls_evenly(mesh: Isthmus) -> None:
    mesh.lab("kill", "east/shop/cart")
    mesh.lab("kill", "south")
    answers = mesh.sequential(CLIENT, CART, 300)
    assert set(answers) == {f"200 west/a/shop/cart-{n}" for n in (1, 2, 3)}
    assert all(75 <= count <= 126 for count in answers.values()), answers
