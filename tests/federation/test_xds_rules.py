"""The rules of the stream protocol one by one, the encoding, and the client side of our own types."""

import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from hypothesis import given
from hypothesis import strategies as st

from federation.xds.client import DeltaClient, InvalidResponse, Received
from federation.xds.protocol import Acked, DeltaStream, Ignored, Order, Push, Rejected, Subscribed
from federation.xds.resources import Resource, TypeUrl, make_resource
from federation.xds.wire import empty_endpoints, encode_response
from tests.support.model_envoy import body

FEDERATED = (TypeUrl.MEMBER, TypeUrl.EXPORT, TypeUrl.BEAT)
texts = st.text(max_size=300)


def request(type_url: TypeUrl, *names: str, **more: object) -> DeltaDiscoveryRequest:
    return DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names, **more)


def ack(push: Push) -> DeltaDiscoveryRequest:
    return DeltaDiscoveryRequest(type_url=push.type_url, response_nonce=push.nonce)


def nack(push: Push, message: str = "no") -> DeltaDiscoveryRequest:
    answer = ack(push)
    answer.error_detail.code = 13
    answer.error_detail.message = message
    return answer


def secret(name: str, version: int) -> Resource:
    return body(TypeUrl.SECRET, name, version=version)


def named(*resources: Resource) -> dict[str, Resource]:
    return {one.name: one for one in resources}


@given(st.lists(st.builds(make_resource, texts, st.binary(max_size=40000)), max_size=5), st.lists(texts), texts)
def test_an_encoded_response_says_what_was_put_in(resources: list[Resource], removed: list[str], nonce: str) -> None:
    response = DeltaDiscoveryResponse.FromString(encode_response(TypeUrl.EXPORT, nonce, resources, removed))
    assert response.type_url == TypeUrl.EXPORT
    assert response.nonce == nonce
    assert list(response.removed_resources) == removed
    found = [(one.name, one.version, one.resource.type_url, one.resource.value) for one in response.resources]
    assert found == [(one.name, one.version, TypeUrl.EXPORT, one.body) for one in resources]


def test_empty_endpoints_are_a_cluster_load_assignment() -> None:
    assert ClusterLoadAssignment.FromString(empty_endpoints("a").body) == ClusterLoadAssignment(cluster_name="a")


def test_nothing_is_sent_before_something_is_offered() -> None:
    stream = DeltaStream(Order.ENVOY)
    assert stream.receive(request(TypeUrl.CLUSTER, initial_resource_versions={"a": "1"})) == Subscribed(TypeUrl.CLUSTER)
    assert stream.due() == []
    assert not stream.is_settled


def test_the_first_wish_for_everything_is_answered_even_with_nothing() -> None:
    stream = DeltaStream(Order.ENVOY)
    stream.offer({})
    stream.receive(request(TypeUrl.CLUSTER))
    (push,) = stream.due()
    assert (push.upserts, push.removed) == ((), ())
    assert stream.receive(ack(push)) == Acked(TypeUrl.CLUSTER, push.nonce)
    assert stream.due() == []


def test_unknown_names_are_answered_at_once_and_sent_when_they_appear() -> None:
    stream = DeltaStream(Order.ENVOY)
    stream.offer({})
    stream.receive(request(TypeUrl.CLUSTER))
    stream.receive(ack(stream.due()[0]))
    stream.receive(request(TypeUrl.ENDPOINTS, "e"))
    stream.receive(request(TypeUrl.SECRET, "s"))
    secrets, endpoints = stream.due()
    assert secrets.removed == ("s",)
    response = DeltaDiscoveryResponse.FromString(endpoints.body)
    assert [one.resource.value for one in response.resources] == [empty_endpoints("e").body]
    stream.receive(ack(secrets))
    stream.receive(ack(endpoints))
    assert stream.due() == []
    real = {TypeUrl.SECRET: named(secret("s", 1)), TypeUrl.ENDPOINTS: named(body(TypeUrl.ENDPOINTS, "e", version=1))}
    stream.offer(real)
    assert [push.upserts for push in stream.due()] == [("s",), ("e",)]


def test_a_name_asked_for_again_is_sent_again() -> None:
    stream = DeltaStream(Order.ENVOY)
    stream.offer({TypeUrl.SECRET: named(secret("s", 1))})
    stream.receive(request(TypeUrl.SECRET, "s"))
    stream.receive(ack(stream.due()[0]))
    assert stream.due() == []
    stream.receive(request(TypeUrl.SECRET, "s"))
    assert [push.upserts for push in stream.due()] == [("s",)]


def test_a_wish_may_ride_with_an_answer() -> None:
    stream = DeltaStream(Order.ENVOY)
    stream.offer({TypeUrl.SECRET: named(secret("s", 1), secret("t", 1))})
    stream.receive(request(TypeUrl.SECRET, "s"))
    answer = ack(stream.due()[0])
    answer.resource_names_subscribe.append("t")
    answer.resource_names_unsubscribe.append("s")
    stream.receive(answer)
    assert [push.upserts for push in stream.due()] == [("t",)]
    assert stream.acknowledged[TypeUrl.SECRET] == {}


def test_the_repaired_secret_goes_first_and_alone() -> None:
    stream = DeltaStream(Order.ENVOY)
    stream.offer({TypeUrl.SECRET: named(secret("bundle", 1), secret("workload", 1))})
    stream.receive(request(TypeUrl.SECRET, "bundle", "workload"))
    for name in ("bundle", "workload"):
        (push,) = stream.due()
        assert push.upserts == (name,)
        stream.receive(ack(push))
    stream.offer({TypeUrl.SECRET: named(secret("bundle", 1), secret("workload", 2))})
    reply = stream.receive(nack(stream.due()[0]))
    assert isinstance(reply, Rejected)
    assert [one.name for one in reply.parked] == ["workload"]
    stream.offer({TypeUrl.SECRET: named(secret("bundle", 2), secret("workload", 2))})
    assert stream.due() == []  # it would be refused beside the bad one
    stream.offer({TypeUrl.SECRET: named(secret("bundle", 2), secret("workload", 3))})
    (push,) = stream.due()
    assert push.upserts == ("workload",)
    stream.receive(ack(push))
    assert [push.upserts for push in stream.due()] == [("bundle",)]
    assert not stream.rejections


def test_an_answer_to_nothing_is_ignored() -> None:
    stream = DeltaStream(Order.ENVOY)
    stream.offer({})
    stream.receive(request(TypeUrl.LISTENER))
    stranger = DeltaDiscoveryRequest(type_url=TypeUrl.LISTENER, response_nonce="77")
    assert isinstance(stream.receive(stranger), Ignored)
    assert isinstance(stream.receive(DeltaDiscoveryRequest(type_url="type.googleapis.com/x.Y")), Ignored)


def test_on_demand_names_come_together_with_everything() -> None:
    """After a reconnect Envoy asks for `*` and for names in one message."""
    upstreams = named(*(body(TypeUrl.CLUSTER, name, version=1) for name in ("a", "b")))
    stream = DeltaStream(Order.ENVOY)
    stream.offer({TypeUrl.CLUSTER: upstreams})
    versions = {"a": upstreams["a"].version, "old": "1"}
    stream.receive(request(TypeUrl.CLUSTER, "*", "a", "missing", initial_resource_versions=versions))
    (push,) = stream.due()
    assert push.upserts == ("b",)
    assert push.removed == ("missing",)  # of what it has, nothing goes before the listeners are known
    stream.receive(ack(push))
    stream.receive(request(TypeUrl.LISTENER))
    (push,) = stream.due()
    stream.receive(ack(push))
    (push,) = stream.due()
    assert push.removed == ("old",)


def test_endpoints_follow_an_upstream_that_changed_while_the_client_was_away() -> None:
    endpoints = named(body(TypeUrl.ENDPOINTS, "a", version=1))
    stream = DeltaStream(Order.ENVOY)
    stream.offer({TypeUrl.CLUSTER: named(body(TypeUrl.CLUSTER, "a", version=2)), TypeUrl.ENDPOINTS: endpoints})
    stream.receive(request(TypeUrl.CLUSTER, initial_resource_versions={"a": "1"}))
    assert [push.upserts for push in stream.due()] == [("a",)]
    stream.receive(request(TypeUrl.ENDPOINTS, "a", initial_resource_versions={"a": endpoints["a"].version}))
    assert [push.upserts for push in stream.due()] == [("a",)]


def test_endpoints_wait_for_the_change_of_their_upstream() -> None:
    """They may mean something that only the upstream's next version knows."""

    def target(version: int) -> dict[TypeUrl, dict[str, Resource]]:
        kinds = (TypeUrl.CLUSTER, TypeUrl.ENDPOINTS)
        return {kind: named(body(kind, "a", version=version)) for kind in kinds}

    stream = DeltaStream(Order.ENVOY)
    stream.offer(target(1))
    stream.receive(request(TypeUrl.CLUSTER))
    (first,) = stream.due()
    stream.receive(request(TypeUrl.ENDPOINTS, "a"))
    (endpoints,) = stream.due()
    stream.receive(ack(endpoints))
    stream.offer(target(2))
    assert stream.due() == []  # the answer about upstreams is still out
    stream.receive(ack(first))
    assert [push.type_url for push in stream.due()] == [TypeUrl.CLUSTER, TypeUrl.ENDPOINTS]


def test_listeners_wait_until_upstreams_were_asked_for_but_not_for_ever() -> None:
    """On a new stream Envoy does not ask for upstreams while one warms."""
    stream = DeltaStream(Order.ENVOY)
    stream.offer({TypeUrl.LISTENER: named(body(TypeUrl.LISTENER, "l", version=1))})
    stream.receive(request(TypeUrl.LISTENER))
    assert stream.due() == []
    assert stream.is_waiting
    assert stream.unblock() == ()
    assert [push.upserts for push in stream.due()] == [("l",)]


def relay(stream: DeltaStream, client: DeltaClient, refuse: frozenset[str] = frozenset()) -> list[Received]:
    """Carries messages between the two until both rest; resources named in `refuse` are refused."""
    log = []
    while pushes := stream.due():
        for push in pushes:
            received = client.receive(DeltaDiscoveryResponse.FromString(push.body))
            log.append(received)
            if refuse & {one.name for one in received.upserts}:
                stream.receive(client.reject(received, "refused"))
            else:
                stream.receive(client.acknowledge(received))
    return log


worlds = st.dictionaries(
    st.sampled_from([TypeUrl.MEMBER, TypeUrl.EXPORT]),
    st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=2)),
)


@given(st.lists(st.tuples(worlds, st.booleans()), max_size=6), st.frozensets(st.sampled_from("abcdef"), max_size=3))
def test_a_peer_holds_what_is_offered_but_for_what_it_refuses(
    steps: list[tuple[dict[TypeUrl, dict[str, bytes]], bool]], refuse: frozenset[str]
) -> None:
    stream, client, held = DeltaStream(Order.NONE), DeltaClient(FEDERATED), {}
    for one in client.open({}, Node(id="west")):
        stream.receive(one)
    for world, is_reconnecting in steps:
        if is_reconnecting:
            held = client.held
            stream, client = DeltaStream(Order.NONE), DeltaClient(FEDERATED)
            for one in client.open(held, Node(id="west")):
                stream.receive(one)
        target = {kind: named(*(make_resource(*item) for item in names.items())) for kind, names in world.items()}
        stream.offer(target)
        relay(stream, client, refuse)
        assert stream.is_settled
        for kind in FEDERATED:
            wanted = {name: one.version for name, one in target.get(kind, {}).items() if name not in refuse}
            assert client.held[kind] == wanted
            assert {name for where, name in stream.rejections if where is kind} == target.get(kind, {}).keys() & refuse


def test_a_resumed_peer_hears_the_end_of_the_differences() -> None:
    member = named(make_resource("east", b"x"))
    stream, client = DeltaStream(Order.NONE), DeltaClient(FEDERATED)
    stream.offer({TypeUrl.MEMBER: member})
    requests = client.open({TypeUrl.MEMBER: {"east": member["east"].version}}, Node(id="west"))
    assert [one.node.id for one in requests] == ["west", "", ""]
    for one in requests:
        stream.receive(one)
    log = relay(stream, client)
    assert [(one.type_url, one.upserts, one.removed) for one in log] == [(kind, (), ()) for kind in FEDERATED]


def test_a_server_out_of_its_mind_is_noticed() -> None:
    client = DeltaClient((TypeUrl.MEMBER,))
    client.open({}, Node(id="west"))
    for response in (
        encode_response(TypeUrl.EXPORT, "1", (), ()),
        encode_response(TypeUrl.MEMBER, "", (), ()),
        encode_response(TypeUrl.MEMBER, "1", (Resource(name="", version="1", body=b""),), ()),
    ):
        with pytest.raises(InvalidResponse):
            client.receive(DeltaDiscoveryResponse.FromString(response))


def test_of_a_refusal_without_end_what_matters_is_kept() -> None:
    stream = DeltaStream(Order.NONE)
    stream.receive(request(TypeUrl.EXPORT, "*"))
    names = [f"shop/cart-{number}" for number in range(1000)]
    stream.offer({TypeUrl.EXPORT: named(*(body(TypeUrl.EXPORT, name, version=1) for name in names))})
    [push] = stream.due()
    reply = stream.receive(nack(push, "; ".join(f"Export {name}: {name} is bad {'x' * 3000}" for name in names)))
    assert isinstance(reply, Rejected)
    assert len(reply.message) < 100_000
    while due := stream.due():  # who is not named in what is read is sent again
        stream.receive(nack(due[0], "; ".join(f"Export {name}: {name} is bad {'x' * 3000}" for name in due[0].upserts)))
    rejections = stream.rejections
    assert {name for _, name in rejections} == set(names)
    assert all(f"{name}: {name} is bad" in one.message for (_, name), one in rejections.items())
    assert sum(len(one.message) for one in rejections.values()) < 2_000_000
