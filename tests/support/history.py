"""What etcd itself remembers: every write since its first revision, and who led when it was done."""

import asyncio
from collections.abc import Sequence

import msgspec
from grpc import aio

from federation.etcd import EtcdClient, Event
from federation.etcd.api import etcd_rpc_pb2 as rpc
from federation.etcd.messages import event, range_of
from federation.names import ETCD_PREFIX, LEADER_KEY

_END = f"{ETCD_PREFIX}end-of-history"


class Reign(msgspec.Struct, frozen=True):
    """The writes of the time in which one replica led, or nobody: from the revision `begin` to that of the next."""

    holder: str
    begin: int
    writes: tuple[Event, ...]

    def __str__(self) -> str:
        keys = " ".join(f"{write.revision}:{write.key.removeprefix(ETCD_PREFIX)}" for write in self.writes)
        return f"from revision {self.begin} {self.holder or 'nobody'} leads: {keys or '-'}"


async def history(url: str) -> tuple[Event, ...]:
    """Returns all writes of ours that etcd has not compacted away, in order, up to now."""
    async with EtcdClient((url,)) as client:
        await client.put(_END, b"")
    first, end = range_of(ETCD_PREFIX)
    found: list[Event] = []
    async with asyncio.timeout(60), aio.insecure_channel(url.removeprefix("http://")) as channel:
        method = channel.stream_stream(
            "/etcdserverpb.Watch/Watch", rpc.WatchRequest.SerializeToString, rpc.WatchResponse.FromString
        )
        call: aio.StreamStreamCall[rpc.WatchRequest, rpc.WatchResponse] = method()
        create = rpc.WatchCreateRequest(key=first, range_end=end, start_revision=1)
        await call.write(rpc.WatchRequest(create_request=create))
        while not found or found[-1].key != _END:
            answer = await call.read()
            assert isinstance(answer, rpc.WatchResponse)
            assert not answer.canceled, answer
            found += [event(message) for message in answer.events]
        call.cancel()
    return tuple(one for one in found if one.key != _END)


def reigns(events: Sequence[Event]) -> tuple[Reign, ...]:
    """Divides a history by who led: each reign begins with the leader's key, or with its end."""
    found = [Reign("", 0, ())]
    for one in events:
        if one.key == LEADER_KEY:
            found.append(Reign(one.item.value.decode() if one.item else "", one.revision, ()))
        else:
            found[-1] = msgspec.structs.replace(found[-1], writes=(*found[-1].writes, one))
    return tuple(found)
