"""The metrics of a control plane, every name of them, as Prometheus text. By opentelemetry-sdk, without its globals.

Labels are bounded: never a pod, an address or a version. Two kinds of source: events that are told as they happen
(`Telemetry.converged`), and gauges that are read from the process when somebody scrapes (`Gauges`).
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType

import msgspec
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

CONVERGENCE = "isthmus.convergence"
PROXIES = "isthmus.proxies"
PROXIES_IN_STEP = "isthmus.proxies.in_step"
PUSHES = "isthmus.pushes"
REFUSALS = "isthmus.refusals"
CROWDED = "isthmus.streams.crowded"
REJECTIONS = "isthmus.rejections"
PEERS = "isthmus.peers"
FINDINGS = "isthmus.findings"
OBJECTS = "isthmus.objects"
REVISION = "isthmus.revision"
LEADING = "isthmus.leading"
CERTIFICATE_LEFT = "isthmus.certificate.left"
ISSUED = "isthmus.issued"
ISSUANCE_REFUSED = "isthmus.issuance.refused"
TRUST_PROXIES = "isthmus.trust.proxies"
TRUST_SEQUENCE = "isthmus.trust.sequence"
TRUST_WARNINGS = "isthmus.trust.warnings"
REVOCATIONS = "isthmus.revocations"
PROBLEMS = "isthmus.problems"
DRAINS = "isthmus.drains"
OPEN = "isthmus.open"

SCOPE, ROLE, TYPE, STATE, SEVERITY, KIND = "scope", "role", "type", "state", "severity", "kind"
REASON, ORIGIN, MEMBER = "reason", "origin", "member"

# Seconds. A healthy local change takes some 20 ms, a remote one some 100 ms; a minute means that a proxy was away.
_CONVERGENCE_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_NONE: Mapping[str, int] = MappingProxyType({})


class Gauges(msgspec.Struct, frozen=True):
    """What the process looks like at the moment of a scrape.

    `rejections` counts by short xDS type, `peers` by liveness, `findings` by severity, `objects` by kind, `proxies` and
    `proxies_in_step` by role. `certificate_left` is in seconds, the least of each kind (leaf, intermediate, root).
    `trust_proxies` counts by what they have taken of the mesh's trust, `revocations` by who decided, `problems` by what
    they are with, `drains` by what is drained (a cluster, a service), `open` by the member that calls are open to.
    """

    revision: int = 0
    is_leading: bool = False
    certificate_left: Mapping[str, float] = _NONE
    proxies: Mapping[str, int] = _NONE
    proxies_in_step: Mapping[str, int] = _NONE
    rejections: Mapping[str, int] = _NONE
    peers: Mapping[str, int] = _NONE
    findings: Mapping[str, int] = _NONE
    objects: Mapping[str, int] = _NONE
    trust_sequence: int = 0
    trust_warnings: int = 0
    trust_proxies: Mapping[str, int] = _NONE
    revocations: Mapping[str, int] = _NONE
    problems: Mapping[str, int] = _NONE
    drains: Mapping[str, int] = _NONE
    open: Mapping[str, int] = _NONE


class Telemetry:
    """The metrics of one process. `read` is called at every scrape, on the thread that calls `text`."""

    def __init__(self, cluster: str, replica: str, read: Callable[[], Gauges]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        buckets = ExplicitBucketHistogramAggregation(boundaries=_CONVERGENCE_BUCKETS)
        self._provider = MeterProvider(
            metric_readers=[PrometheusMetricReader(registry=self._registry, scope_info_enabled=False)],
            resource=Resource(
                {"service.name": "isthmus-control", "isthmus.cluster": cluster, "isthmus.replica": replica}
            ),
            shutdown_on_exit=False,
            views=[View(instrument_type=Histogram, instrument_name=CONVERGENCE, aggregation=buckets)],
        )
        meter = self._provider.get_meter("isthmus")
        self._convergence = meter.create_histogram(
            CONVERGENCE, "s", "From the first sight of a change anywhere to its acknowledgement by a proxy."
        )
        self._pushes = meter.create_counter(PUSHES, description="Responses sent to proxies.")
        self._refusals = meter.create_counter(REFUSALS, description="Responses that proxies refused.")
        self._crowded = meter.create_counter(CROWDED, description="Streams that ended because a proxy had too many.")
        self._issued = meter.create_counter(ISSUED, description="Certificates made, by whom they are for.")
        self._issuance_refused = meter.create_counter(
            ISSUANCE_REFUSED, description="Certificates that were asked for and not made."
        )
        self._read = read
        self._gauges = Gauges()

        def single(name: str, unit: str, value: Callable[[Gauges], float], text: str) -> None:
            def observe(_: CallbackOptions) -> Iterable[Observation]:
                return [Observation(value(self._gauges))]

            meter.create_observable_gauge(name, [observe], unit, text)

        def labelled(
            name: str, label: str, values: Callable[[Gauges], Mapping[str, float]], text: str, unit: str = ""
        ) -> None:
            def observe(_: CallbackOptions) -> Iterable[Observation]:
                return [Observation(count, {label: key}) for key, count in values(self._gauges).items()]

            meter.create_observable_gauge(name, [observe], unit, text)

        single(REVISION, "", lambda now: now.revision, "Revision of the picture of this replica.")
        single(LEADING, "", lambda now: int(now.is_leading), "1 when this replica leads its cluster.")
        single(TRUST_SEQUENCE, "", lambda now: now.trust_sequence, "Number of the trust bundle in force.")
        single(TRUST_WARNINGS, "", lambda now: now.trust_warnings, "What `isthmus trust status` warns of.")
        labelled(PROXIES, ROLE, lambda now: now.proxies, "Proxies connected to this replica.")
        labelled(
            PROXIES_IN_STEP, ROLE, lambda now: now.proxies_in_step, "Proxies that acknowledged all they should have."
        )
        labelled(REJECTIONS, TYPE, lambda now: now.rejections, "Resources that proxies refuse now.")
        labelled(PEERS, STATE, lambda now: now.peers, "Other members of the mesh.")
        labelled(FINDINGS, SEVERITY, lambda now: now.findings, "What is wrong with the objects of this cluster.")
        labelled(OBJECTS, KIND, lambda now: now.objects, "Objects in the picture.")
        labelled(
            CERTIFICATE_LEFT, KIND, lambda now: now.certificate_left, "Time until the first of a kind expires.", "s"
        )
        labelled(TRUST_PROXIES, STATE, lambda now: now.trust_proxies, "Proxies by what they have taken of the trust.")
        labelled(DRAINS, KIND, lambda now: now.drains, "Drains in force here, of members and of services.")
        labelled(OPEN, MEMBER, lambda now: now.open, "Requests, streams and TCP connections open to each member.")
        labelled(PROBLEMS, KIND, lambda now: now.problems, "What does not work now, as `isthmus status` says.")
        labelled(REVOCATIONS, ORIGIN, lambda now: now.revocations, "Who is believed no longer, by who decided.")

    def converged(self, took: timedelta, is_remote: bool) -> None:
        """Notes that a proxy has acknowledged a change that was first seen `took` ago, here or at a peer."""
        # Clocks of two clusters may differ by more than it took: never record the negative.
        self._convergence.record(max(0.0, took.total_seconds()), {SCOPE: "remote" if is_remote else "local"})

    def pushed(self, type_name: str) -> None:
        """Notes a response to a proxy, by the short name of its xDS type."""
        self._pushes.add(1, {TYPE: type_name})

    def refused(self, type_name: str) -> None:
        """Notes a response that a proxy refused."""
        self._refusals.add(1, {TYPE: type_name})

    def crowded(self, role: str) -> None:
        """Notes a stream that ended because its proxy, a "sidecar" or a "gateway", had too many."""
        self._crowded.add(1, {ROLE: role})

    def issued(self, role: str) -> None:
        """Notes a certificate for a "sidecar", a "gateway" or the "control" plane."""
        self._issued.add(1, {ROLE: role})

    def issuance_refused(self, reason: str) -> None:
        """Notes a certificate that was not made; `reason` is one of few words."""
        self._issuance_refused.add(1, {REASON: reason})

    def text(self) -> bytes:
        """Returns all metrics in the text format of Prometheus, version 0.0.4."""
        self._gauges = self._read()
        return generate_latest(self._registry)

    def close(self) -> None:
        """Ends the provider; `text` must not be called afterwards."""
        self._provider.shutdown()
