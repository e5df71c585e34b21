"""The stream protocol under every schedule that hypothesis finds, and the rules one by one."""

from collections import deque

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from federation.xds.protocol import DeltaStream, Order, Push, Rejected
from federation.xds.resources import ResourceSet, TypeUrl
from tests.support.model_envoy import NAMED, UNNAMED, ModelEnvoy, body, content

UPSTREAMS = ("a", "b", "c", "d")
TYPES = (TypeUrl.CLUSTER, TypeUrl.ENDPOINTS, TypeUrl.ROUTES, TypeUrl.LISTENER, TypeUrl.EXTENSION)
RULES = ("x", "y")
small = st.integers(0, 3)
seldom_bad = st.sampled_from(["", "", "", "", "", NAMED, UNNAMED])
upstreams = st.dictionaries(
    st.sampled_from(UPSTREAMS), st.tuples(small, seldom_bad, small, seldom_bad), max_size=len(UPSTREAMS)
)


def world(
    services: dict[str, tuple[int, str, int, str]],
    route: tuple[int, str],
    listener: tuple[int, str],
    rules: tuple[int, str] = (0, ""),
) -> ResourceSet:
    """A target: upstreams with endpoints, one route over all of them, listeners with that route and with rules."""
    return {
        TypeUrl.CLUSTER: {
            name: body(TypeUrl.CLUSTER, name, version=version, bad=bad)
            for name, (version, bad, _, _) in services.items()
        },
        TypeUrl.ENDPOINTS: {
            name: body(TypeUrl.ENDPOINTS, name, version=version, bad=bad)
            for name, (_, _, version, bad) in services.items()
        },
        TypeUrl.ROUTES: {"r": body(TypeUrl.ROUTES, "r", version=route[0], bad=route[1], use=sorted(services))},
        TypeUrl.LISTENER: {
            "l": body(TypeUrl.LISTENER, "l", version=listener[0], bad=listener[1], use=["r"], rules=RULES),
            "m": body(TypeUrl.LISTENER, "m", version=listener[0], bad="", use=["r"], rules=RULES[:1]),
        },
        TypeUrl.EXTENSION: {
            "x": body(TypeUrl.EXTENSION, "x", version=rules[0], bad=rules[1]),
            "y": body(TypeUrl.EXTENSION, "y", version=rules[0], bad=""),
        },
    }


def decode(push: Push) -> DeltaDiscoveryResponse:
    return DeltaDiscoveryResponse.FromString(push.body)


class Delivery(RuleBasedStateMachine):
    """Server and model Envoy with a queue each way; every step of either may come at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.envoy = ModelEnvoy()
        self.target: ResourceSet | None = None
        self.ever_bad: set[str] = set()
        self.gave_up = False

    @initialize()
    def first(self) -> None:
        self._connect()

    def _connect(self) -> None:
        self.stream = DeltaStream(Order.ENVOY)
        self.to_envoy: deque[Push] = deque()
        self.to_server: deque[DeltaDiscoveryRequest] = deque()
        self.refused: set[tuple[TypeUrl, str, str]] = set()
        self.forbidden: set[tuple[TypeUrl, str, str]] = set()  # refused, and not changed since
        self.gave_up = False
        self.envoy.connect()
        if self.target is not None:
            self.stream.offer(self.target)

    @rule(
        services=upstreams,
        route=st.tuples(small, seldom_bad),
        listener=st.tuples(small, seldom_bad),
        rules=st.tuples(small, seldom_bad),
    )
    def change(
        self,
        services: dict[str, tuple[int, str, int, str]],
        route: tuple[int, str],
        listener: tuple[int, str],
        rules: tuple[int, str] = (0, ""),
    ) -> None:
        self.target = world(services, route, listener, rules)
        self.ever_bad |= {name for name, (_, bad, _, also) in services.items() if bad or also}
        self.stream.offer(self.target)
        self.forbidden = {
            (type_url, name, version)
            for type_url, name, version in self.forbidden
            if name in self.target[type_url] and self.target[type_url][name].version == version
        }

    @rule()
    def send(self) -> None:
        for push in self.stream.due():
            assert [one for one, _ in self.stream.unanswered].count(push.type_url) == 1 or self.gave_up
            response = decode(push)
            assert (response.type_url, response.nonce) == (push.type_url, push.nonce)
            for resource in response.resources:
                assert (push.type_url, resource.name, resource.version) not in self.forbidden
            self.to_envoy.append(push)
        self._no_rules_wait()

    def _no_rules_wait(self) -> None:
        """Whatever else is under way, rules that were asked for are on their way, one after the other."""
        held = self.stream.acknowledged.get(TypeUrl.EXTENSION)
        on_the_way = [one for one, _ in self.stream.unanswered].count(TypeUrl.EXTENSION)
        if self.target is None or held is None or on_the_way:
            return
        for name, version in held.items():
            resource = self.target[TypeUrl.EXTENSION][name]
            assert version == resource.version or (TypeUrl.EXTENSION, name) in self.stream.rejections

    @precondition(lambda self: self.to_envoy)
    @rule()
    def deliver(self) -> None:
        push = self.to_envoy.popleft()
        response = decode(push)
        if push.type_url is TypeUrl.CLUSTER:
            used = {name for one in self.envoy.applied[TypeUrl.ROUTES].values() for name in one["use"]}
            assert not used & set(push.removed), "an upstream goes while a route names it"
        if push.type_url is TypeUrl.ENDPOINTS:
            assert not push.removed, "Envoy would not hear it"
        before = dict(self.envoy.applied[TypeUrl.ROUTES])
        self.envoy.receive(response)
        if self.envoy.applied[TypeUrl.ROUTES] != before and not self.gave_up:
            used = {name for one in self.envoy.applied[TypeUrl.ROUTES].values() for name in one["use"]}
            warm = self.envoy.applied[TypeUrl.CLUSTER].keys() - self.envoy.warming
            assert used - self.ever_bad <= warm, "a route names an upstream that is not there or not warm"

    @rule()
    def answer(self) -> None:
        self.to_server.extend(self.envoy.outbox)
        self.envoy.outbox.clear()
        if self.to_server:
            reply = self.stream.receive(self.to_server.popleft())
            if isinstance(reply, Rejected):
                culprits = {(one.type_url, one.name, one.version) for one in reply.parked}
                self.refused |= culprits
                self.forbidden |= culprits

    @rule(rounds=st.integers(1, 12))
    def flow(self, rounds: int) -> None:
        """Lets everything run for a while: deep states are seldom reached step by step."""
        for _ in range(rounds):
            self.send()
            while self.to_envoy:
                self.deliver()
            while self.envoy.outbox or self.to_server:
                self.answer()

    @rule()
    def reconnect(self) -> None:
        self._connect()

    @precondition(lambda self: self.stream.is_waiting)
    @rule()
    def give_up(self) -> None:
        self.gave_up = True
        self.stream.unblock()
        assert not self.stream.is_waiting

    @invariant()
    def refusals_are_shown(self) -> None:
        for (type_url, name), rejection in self.stream.rejections.items():
            assert (type_url, name, rejection.version) in self.refused

    def teardown(self) -> None:
        if self.target is None:
            return
        for _ in range(400):
            self.send()
            if not (self.to_envoy or self.to_server or self.envoy.outbox):
                break
            self.flow(1)
        else:
            raise AssertionError("never comes to rest")
        assert not self.envoy.warming, "an upstream waits for endpoints that do not come"
        assert self.stream.is_settled
        assert not self.stream.unanswered
        refused = self.stream.rejections
        for type_url in TYPES:
            wanted = {name: one for name, one in self.target[type_url].items() if (type_url, name) not in refused}
            held = self.stream.acknowledged.get(type_url, {})
            for name, resource in wanted.items():
                if type_url is TypeUrl.ENDPOINTS and name not in self.envoy.applied[TypeUrl.CLUSTER]:
                    continue  # its upstream was refused, so nobody asks
                if type_url in (TypeUrl.ROUTES, TypeUrl.EXTENSION) and not self.envoy.applied[TypeUrl.LISTENER]:
                    continue
                if type_url is TypeUrl.EXTENSION and name == "y" and "l" not in self.envoy.applied[TypeUrl.LISTENER]:
                    continue
                assert held[name] == resource.version
                if (type_url, name) not in self.envoy.unrecorded:
                    assert self.envoy.applied[type_url][name]["version"] == content(type_url, resource.body)["version"]
        for type_url, name in refused:
            assert content(type_url, self.target[type_url][name].body)["bad"], "a good one is parked"
        keeps = any(type_url in (TypeUrl.ROUTES, TypeUrl.LISTENER) for type_url, _ in refused)
        if not keeps:
            surplus = self.envoy.applied[TypeUrl.CLUSTER].keys() - self.target[TypeUrl.CLUSTER].keys()
            assert not {name for name in surplus if (TypeUrl.CLUSTER, name) not in self.envoy.unrecorded}


Delivery.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
TestDelivery = Delivery.TestCase


def test_suspects_that_stay_behind_their_upstream_hold_nobody_back() -> None:
    """Found by a schedule: endpoints to be isolated waited for an upstream that waited for other endpoints."""
    delivery = Delivery()
    delivery.first()
    delivery.answer()
    good = (0, "", 0, "")
    delivery.change(services=dict.fromkeys("acd", good), route=(0, ""), listener=(0, ""))
    delivery.flow(rounds=1)
    mixed = {"a": (0, UNNAMED, 0, ""), "b": good, "c": (1, "", 0, ""), "d": (1, "", 0, NAMED)}
    delivery.change(services=mixed, route=(0, ""), listener=(0, ""))
    delivery.teardown()


def test_an_upstream_that_is_to_go_before_its_endpoints_were_asked_for_becomes_warm() -> None:
    """Found by a schedule: it waited for endpoints that the new picture did not hold, and held everything back."""
    delivery = Delivery()
    delivery.first()
    delivery.change(services={"a": (0, "", 0, "")}, route=(0, ""), listener=(0, ""))
    delivery.flow(rounds=3)
    delivery.change(services={"a": (1, "", 0, "")}, route=(0, ""), listener=(0, ""))
    delivery.reconnect()
    delivery.answer()
    delivery.send()
    delivery.change(services={}, route=(0, ""), listener=(0, ""))
    delivery.teardown()
