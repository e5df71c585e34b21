"""Whose connections are made to end, by revocations and by drains: names of times, one time until the next end. Pure.

A filter chain that is configured under another name is another chain for Envoy: the connections of the one before drain
(10 s), new ones are taken by the new one. So the time since the last end stands in the name. A name never goes back: a
drain that is undone leaves its severance where it is, or all would be cut again.
"""

from collections.abc import Mapping
from datetime import UTC

import msgspec

from federation.model import ClusterSettings, ServiceKey, Severance
from federation.revoked import severing_epoch
from federation.snapshot import Snapshot


class Epochs(msgspec.Struct, frozen=True):
    """The names, to be put into those of filter chains. Empty: nothing was ever made to end.

    `sidecars` is for all chains of sidecars, `tunnels` for the tunnels at gateways. The inbound chains of exported
    services may have been cut besides: of all (`exported`), or of some.
    """

    sidecars: str = ""
    tunnels: str = ""
    exported: str = ""
    services: Mapping[ServiceKey, str] = {}

    def of_service(self, key: ServiceKey, *, is_exported: bool) -> str:
        """Returns the name for the inbound chains of one service."""
        drained = (self.exported, self.services.get(key, "")) if is_exported else ()
        return "+".join(filter(None, (self.sidecars, max(drained, default=""))))


def epochs(snapshot: Snapshot, settings: ClusterSettings) -> Epochs:
    """Returns the names of the times since what was open to this cluster was last made to end."""
    own = [one for one in snapshot.severances.values() if one.cluster == settings.name]
    of_all = [one for one in own if one.service is None]
    return Epochs(
        sidecars=severing_epoch(snapshot, settings),
        tunnels=max(map(_name, of_all), default=""),
        exported=max((_name(one) for one in of_all if one.sidecars), default=""),
        services={one.service: _name(one) for one in own if one.service is not None},
    )


def _name(severance: Severance) -> str:
    """Returns the name of the time since a severance: the later, the greater."""
    return f"{severance.at.astimezone(UTC):%Y%m%dT%H%M%S.%f}"
