"""Loopback addresses for tests: runs side by side do not meet."""

import secrets
import socket
from contextlib import closing

_PORTS = (2379, 2380, 2381, 15001, 15008, 15012, 15013, 15014, 15443)
"""The ports of etcd, its health, sidecars, control planes and gateways."""


def free_address() -> str:
    """Returns an address of 127.102.0.0/16 on which nobody listens on a port of ours."""
    while True:
        address = f"127.102.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
        try:
            for port in _PORTS:
                with closing(socket.create_server((address, port))):
                    pass
        except OSError:
            continue
        return address
