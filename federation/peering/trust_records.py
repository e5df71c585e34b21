"""Statements, grants and documents of the root as resources of the federation stream and as records in etcd."""

from collections.abc import Mapping

from federation.etcd import EtcdClient
from federation.peering.trustees import HeardStatement
from trust.joining import Grant
from trust.spiffe import ClusterName


def heard_statements(records: Mapping[str, bytes]) -> tuple[HeardStatement, ...]:
    """Returns what members said of their trust, by name; `records` are those of the Replica."""
    raise NotImplementedError


def grants_for(records: Mapping[str, bytes], peer: ClusterName) -> tuple[Grant, ...]:
    """Returns the grants that wait for `peer`; `records` are those of the Replica."""
    raise NotImplementedError


async def keep_grant(etcd: EtcdClient, grant: Grant) -> None:
    """Keeps a grant until its addressee has it; the newest of each. Raises EtcdUnavailable, EtcdRefused."""
    raise NotImplementedError
