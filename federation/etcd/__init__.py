"""The cluster's own etcd, and who of its replicas may write to it. What is kept there is decided in `peering`.

    client      asks, writes, and follows a prefix without losing a change
    connection  the way to its members, and whose fault a failure is
    health      what the exchanges say of etcd: unreachable, read-only, slow, lost data            P
    messages    the values, and their translation to etcd's messages      P
    election    one leader, whose writes etcd refuses once it is replaced
    api         the part of etcd's v3 gRPC API that we speak: generated

No client on PyPI imports with today's protobuf, so etcd is spoken over its own API.
"""

from federation.etcd.client import EtcdClient, Fenced
from federation.etcd.connection import EtcdError, EtcdFull, EtcdRefused, EtcdTls, EtcdUnavailable, LeaseExpired
from federation.etcd.messages import (
    NO_LEASE,
    Condition,
    Delete,
    Event,
    Get,
    Guard,
    KeyValue,
    LeaseId,
    Listing,
    Operation,
    Outcome,
    Put,
    Unchanged,
)

__all__ = [
    "NO_LEASE",
    "Condition",
    "Delete",
    "EtcdClient",
    "EtcdError",
    "EtcdFull",
    "EtcdRefused",
    "EtcdTls",
    "EtcdUnavailable",
    "Event",
    "Fenced",
    "Get",
    "Guard",
    "KeyValue",
    "LeaseExpired",
    "LeaseId",
    "Listing",
    "Operation",
    "Outcome",
    "Put",
    "Unchanged",
]
