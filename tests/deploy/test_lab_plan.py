"""The lab file: what it means, what is refused and on which line."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.lab.addresses import assign
from deploy.lab.plan import Cluster, InvalidLab, Plan, Workload, read_plan
from deploy.lab.plan_file import parse_duration
from deploy.lab.startup import BUNDLED
from deploy.lab.targets import Kind, ProcessId, UnknownTarget, all_processes, parse_process, select
from federation.model import Thresholds
from trust.spiffe import MeshDomain

SMALL = """\
clusters:
  - name: east
    region: eu
    zones: [a, b]
    workloads:
      - name: cart
        namespace: shop
        port: 8080
        command: python -m http.server {port}
"""


def test_defaults_complete_a_small_lab_file() -> None:
    plan = read_plan(SMALL, "lab.yaml")
    [east] = plan.clusters
    [cart] = east.workloads
    assert plan.domain == "mesh.test"
    assert (east.network, east.gateways, east.control_replicas, east.etcd_replicas) == ("east", 1, 1, 1)
    assert (east.labels, east.thresholds) == ((), Thresholds())
    assert cart.labels == (("app", "cart"),)
    assert cart.account == "default"
    assert cart.zones == ("a",)
    assert cart.command == ("python", "-m", "http.server", "{port}")
    assert cart.probe_path == ""


def test_a_member_says_labels_and_when_it_believes_others_silent() -> None:
    said = "    labels: {tier: gold, acme.example/ring: '2'}\n    staleAfter: 2s\n    goneAfter: never\n    zones"
    [east] = read_plan(SMALL.replace("    zones", said), "lab.yaml").clusters
    assert east.labels == (("acme.example/ring", "2"), ("tier", "gold"))
    assert east.thresholds == Thresholds(timedelta(seconds=2), None)
    assert read_plan(SMALL.replace("    zones", "    goneAfter: 48h\n    zones"), "lab.yaml").clusters[
        0
    ].thresholds == Thresholds(gone_after=timedelta(hours=48))


def test_bundled_example_is_the_shop_in_three_clusters() -> None:
    plan = read_plan(BUNDLED.read_text(), str(BUNDLED))
    carts = {cluster.name: cluster.workloads[0].zones for cluster in plan.clusters}
    assert carts == {"east": ("a", "b"), "west": ("a", "a", "a"), "south": ("a",)}
    assert plan.round_trip("west", "east") == timedelta(milliseconds=20)
    assert all((BUNDLED.parent / path).exists() for cluster in plan.clusters for path in cluster.manifests)


@pytest.mark.parametrize(
    ("replicas", "zones"),
    [
        ("3", ("a", "a", "b")),
        ("{b: 1, a: 2}", ("a", "a", "b")),
        ("0", ()),
        ("{b: 1}", ("b",)),
    ],
)
def test_instances_are_numbered_zone_after_zone(replicas: str, zones: tuple[str, ...]) -> None:
    plan = read_plan(SMALL + f"        replicas: {replicas}\n", "lab.yaml")
    assert plan.clusters[0].workloads[0].zones == zones


def test_a_dependency_keeps_its_port_when_that_is_free() -> None:
    uses = """\
        uses:
          - {service: cache.shop, port: 6379}
          - {service: other.shop, port: 8080}
          - {service: low.shop, port: 443, env: LOW}
"""
    [workload] = read_plan(SMALL + uses, "lab.yaml").clusters[0].workloads
    assert [(use.variable, use.port, use.listen_port) for use in workload.uses] == [
        ("CACHE_ADDRESS", 6379, 6379),
        ("OTHER_ADDRESS", 8080, 16000),
        ("LOW", 443, 16001),
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "said"),
    [
        ("name: east", "name: East", 2, "clusters[0].name", "not a cluster name"),
        ("region: eu", "regoin: eu", 3, "clusters[0].regoin", "regoin"),
        ("zones: [a, b]", "zones: [a, a]", 4, "clusters[0].zones[1]", "twice"),
        ("port: 8080", "port: 80", 8, "clusters[0].workloads[0].port", "port 80"),
        ("port: 8080", "port: 15001", 8, "clusters[0].workloads[0].port", "15001"),
        ("port: 8080", "port: many", 8, "clusters[0].workloads[0].port", "whole number"),
        ("namespace: shop", "replicas: {c: 1}", 7, "clusters[0].workloads[0].replicas.c", "no zone 'c'"),
        ("namespace: shop", "replicas: -1", 7, "clusters[0].workloads[0].replicas", "-1"),
        ("namespace: shop", "env: {1A: x}", 7, "clusters[0].workloads[0].env.1A", "variable"),
        ("    zones", "    gateways: 0\n    zones", 4, "clusters[0].gateways", "0 is not possible"),
        ("clusters:", "links:\n  - {between: [east, moon]}\nclusters:", 2, "links[0].between[1]", "no cluster 'moon'"),
        ("    zones", "    etcdReplicas: 2\n    zones", 4, "clusters[0].etcdReplicas", "2 is not possible"),
        ("    zones", "    labels: {a b: c}\n    zones", 4, "clusters[0].labels[a b]", "not a label"),
        ("    zones", "    labels: {a: 'x,y=z'}\n    zones", 4, "clusters[0].labels.a", "not a label"),
        ("    zones", "    staleAfter: soon\n    zones", 4, "clusters[0].staleAfter", "not a duration"),
        ("    zones", "    staleAfter: 1500ms\n    zones", 4, "clusters[0].staleAfter", "whole seconds"),
        ("    zones", "    goneAfter: 4s\n    zones", 4, "clusters[0].goneAfter", "gone before it is stale"),
        ("clusters:", "domain: mesh\nclusters:", 1, "domain", "not a mesh domain"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_field(old: str, new: str, line: int, field: str, said: str) -> None:
    with pytest.raises(InvalidLab) as caught:
        read_plan(SMALL.replace(old, new, 1), "lab.yaml")
    assert [(finding.where, finding.line, finding.field) for finding in caught.value.findings] == [
        ("lab.yaml", line, field)
    ]
    assert said in caught.value.findings[0].message
    assert caught.value.findings[0].hint


def test_a_workload_may_not_be_called_like_another_ones_instance() -> None:
    second = SMALL[SMALL.index("      - name") :].replace("name: cart", "name: cart-1")
    with pytest.raises(InvalidLab, match="'cart-1' is also a name of workload 'cart'"):
        read_plan(SMALL + second, "lab.yaml")
    with pytest.raises(InvalidLab, match="'cart' is also a name"):
        read_plan(SMALL + SMALL[SMALL.index("      - name") :], "lab.yaml")


def test_all_findings_come_at_once() -> None:
    with pytest.raises(InvalidLab) as caught:
        read_plan(SMALL.replace("name: east", "name: East").replace("8080", "80"), "lab.yaml")
    assert len(caught.value.findings) == 2


def test_durations() -> None:
    assert parse_duration("250ms") == timedelta(milliseconds=250)
    assert parse_duration("1.5s") == timedelta(seconds=1.5)
    assert parse_duration("2m") == timedelta(minutes=2)
    with pytest.raises(ValueError, match="such as 40ms"):
        parse_duration("fast")


def _plan(sizes: list[int], gateways: int) -> Plan:
    return Plan(
        domain=MeshDomain("mesh.test"),
        clusters=tuple(
            Cluster(
                name=f"c{index}",
                region="r",
                zones=("a",),
                cloud="",
                network=f"c{index}",
                gateways=gateways,
                control_replicas=2,
                etcd_replicas=3,
                labels=(),
                thresholds=Thresholds(),
                manifests=(),
                workloads=(
                    Workload(
                        name="w",
                        namespace="n",
                        account="default",
                        labels=(),
                        zones=("a",) * size,
                        port=8080,
                        command=("true",),
                        env=(),
                        probe_path="",
                        uses=(),
                    ),
                ),
            )
            for index, size in enumerate(sizes)
        ),
        latency={},
    )


@given(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=63), gateways=st.integers(1, 8))
def test_no_two_processes_share_an_address(sizes: list[int], gateways: int) -> None:
    addresses = assign(_plan(sizes[:5] + [1] * (len(sizes) - 5), gateways), 16)
    hosts = [
        host
        for mine in addresses.clusters.values()
        for host in (*mine.etcd, *mine.control, *mine.gateways, *mine.pods.values())
    ]
    ends = [(end.listen.address, end.listen.port) for end in addresses.links]
    ends += [(end.listen.address, end.listen.port) for end in addresses.etcd_links]
    assert len(set(hosts)) == len(hosts)
    assert len(set(ends)) == len(ends)
    assert not {address for address, _ in ends} & set(hosts)
    octets = [[int(part) for part in host.split(".")] for host in hosts]
    assert all(
        first == 127 and second == 16 and third < 256 and 0 < fourth < 255 for first, second, third, fourth in octets
    )


def test_targets_mean_processes() -> None:
    processes = all_processes(read_plan(BUNDLED.read_text(), str(BUNDLED)))

    def names(target: str) -> list[str]:
        return [str(process) for process in select(target, processes)]

    assert names("east/etcd") == ["east/etcd"]
    assert names("east/control") == names("east/control-1") == ["east/control-1"]
    assert names("east/shop/cart-2") == ["east/shop/cart-2/sidecar", "east/shop/cart-2/app"]
    assert names("west/shop/cart/app") == [f"west/shop/cart-{number}/app" for number in (1, 2, 3)]
    assert names("south") == [
        "south/etcd",
        "south/control-1",
        "south/gateway-1",
        "south/shop/cart-1/sidecar",
        "south/shop/cart-1/app",
    ]
    three = SMALL.replace("    zones", "    etcdReplicas: 3\n    zones")
    nodes = [str(each) for each in select("east/etcd", all_processes(read_plan(three, "lab.yaml")))]
    assert nodes == ["east/etcd-1", "east/etcd-2", "east/etcd-3"]
    with pytest.raises(UnknownTarget) as caught:
        names("east/shop/card-1")
    assert "east/shop/cart-1" in caught.value.hint


label = st.from_regex(r"[a-z]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)


@given(
    st.one_of(
        st.builds(ProcessId, label, st.just(Kind.ETCD), st.integers(0, 3)),
        st.builds(ProcessId, label, st.sampled_from([Kind.CONTROL, Kind.GATEWAY]), st.integers(1, 99)),
        st.builds(ProcessId, label, st.sampled_from([Kind.APP, Kind.SIDECAR]), st.integers(1, 99), label, label),
    )
)
def test_parsing_the_name_of_a_process_is_the_inverse_of_printing_it(process: ProcessId) -> None:
    assert parse_process(str(process)) == process
