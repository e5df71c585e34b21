"""What the ports of a mesh-wide service are when its members do not agree (MCS API, KEP-1645). Pure.

The ports are the union of all exports. Where two define one port differently, the older export wins, of two of the same
age the cluster whose name comes first: that port leads to those who define it as the winner does, and to nobody else.
Every member judges by the same facts, which the exporting members tell about themselves. An export that does not say
since when it exists (an older edition, or one that nobody was told of yet) counts as the newest.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from federation.model import EPOCH, ClusterSettings, ServiceKey, ServicePort
from federation.offers import Offer, Offers
from federation.snapshot import Snapshot
from trust.spiffe import ClusterName


class PortConflict(msgspec.Struct, frozen=True, order=True):
    """One port that members define differently: `port` is what `winner` says, exported since `since` (EPOCH: unsaid).

    `losers` do not serve this port under the mesh-wide name; with what each of them says, by cluster.
    """

    port: ServicePort
    winner: ClusterName
    since: datetime
    losers: tuple[tuple[ClusterName, ServicePort], ...]


def conflicts(snapshot: Snapshot, settings: ClusterSettings, key: ServiceKey) -> tuple[PortConflict, ...]:
    """Returns the conflicts about a service that this cluster or others export, by port; mostly none."""
    return port_conflicts(Offers(snapshot, settings, settings.network).of(key))


def port_conflicts(offers: Sequence[Offer]) -> tuple[PortConflict, ...]:
    """Returns the conflicts among all offers of one service, by port."""
    if _agree(offers):
        return ()
    found = []
    for number, winner in sorted(_winners(offers).items()):
        port = _port(winner, number)
        others = sorted((offer.cluster, said) for offer in offers for said in offer.ports if said.number == number)
        losers = tuple((cluster, said) for cluster, said in others if said != port)
        if losers:
            found.append(PortConflict(port, winner.cluster, winner.exported_at, losers))
    return tuple(found)


def port_groups(offers: Sequence[Offer]) -> list[tuple[tuple[ServicePort, ...], list[Offer]]]:
    """Divides the ports of one service into groups that the same members serve; both in order.

    Members that cannot be reached serve nothing here, though what they say counts.
    """
    if _agree(offers):
        reached = [offer for offer in offers if offer.reach.path is not None]
        return [(reached[0].ports, reached)] if reached else []
    groups: dict[tuple[ClusterName, ...], list[ServicePort]] = {}
    for number, winner in sorted(_winners(offers).items()):
        port = _port(winner, number)
        serving = tuple(offer.cluster for offer in offers if offer.reach.path is not None and port in offer.ports)
        if not serving:
            continue
        groups.setdefault(serving, []).append(port)
    by_name = {offer.cluster: offer for offer in offers}
    return [(tuple(ports), [by_name[name] for name in serving]) for serving, ports in groups.items()]


def _agree(offers: Iterable[Offer]) -> bool:
    return len({offer.ports for offer in offers}) <= 1


def _winners(offers: Iterable[Offer]) -> Mapping[int, Offer]:
    winners: dict[int, Offer] = {}
    for offer in sorted(offers, key=_age):
        for port in offer.ports:
            winners.setdefault(port.number, offer)
    return winners


def _age(offer: Offer) -> tuple[bool, datetime, ClusterName]:
    return offer.exported_at == EPOCH, offer.exported_at, offer.cluster


def _port(offer: Offer, number: int) -> ServicePort:
    return next(port for port in offer.ports if port.number == number)
