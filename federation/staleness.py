"""Which silences of members matter to somebody: what the clock adds to the picture, and when. Pure.

The leader measures silence and writes it into etcd (`peering.freshness`), at once when a span passes that some
service waits for; from there every replica makes the same `Snapshot.silences`. So no replica drops by a clock of its
own, and while etcd or a leader is missing nothing is dropped.
"""

from collections.abc import Mapping
from datetime import timedelta

from federation.model import Liveness, ServicePolicy, WhenStale
from federation.snapshot import Snapshot
from trust.spiffe import ClusterName

_VOUCHES = 3  # within the time after which Envoy drops what nobody vouches for: two may be late
_SHORTEST_PERIOD = timedelta(seconds=1)


def spans_that_matter(snapshot: Snapshot) -> tuple[timedelta, ...]:
    """Returns the silences, shortest first, after which some service drops a member's endpoints."""
    return tuple(sorted({policy.drop_after for policy in snapshot.policies.values() if _drops(policy)}))


def silences(snapshot: Snapshot) -> Mapping[ClusterName, timedelta]:
    """Returns, of each silent member, the longest of the spans that matter that has passed; none: left out."""
    spans = spans_that_matter(snapshot)
    found = {}
    for cluster, freshness in snapshot.freshness.items():
        if freshness.state in (Liveness.STALE, Liveness.GONE):
            passed = [span for span in spans if span <= freshness.silent]
            if passed:
                found[cluster] = passed[-1]
    return found


def vouching_period(snapshot: Snapshot) -> timedelta | None:
    """Returns how often this control plane must confirm endpoints that must not outlive its word; None: there are none.

    Those are what other members offer of services that drop silent members: Envoy drops them itself (with
    `endpoint_stale_after`) when it is the control plane that is silent.
    """
    spans = [
        policy.drop_after
        for key, policy in snapshot.policies.items()
        if _drops(policy) and any((cluster, key) in snapshot.imports for cluster in snapshot.members)
    ]
    return max(min(spans) / _VOUCHES, _SHORTEST_PERIOD) if spans else None


def _drops(policy: ServicePolicy) -> bool:
    return policy.when_stale is WhenStale.DROP
