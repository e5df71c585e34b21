"""What a rotation waits for, in words, and how it ended: what its driver decides with and reports. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

import msgspec

from deploy.cli.survey import Silent
from trust.bundle import TrustBundle, bundle_digest
from trust.rotation import Holdup, Statements, authority_holdups, signs_as_asked
from trust.spiffe import ClusterName
from trust.statements import TrustStatement


class Stage(StrEnum):
    """What a rotation waits for. Values are for programs; `WORDS` says them to people."""

    CATCHING_UP = "catching-up"
    ANNOUNCED = "announced"
    SIGNING = "signing"
    RETIRING = "retiring"
    TRUSTING = "trusting"
    ASKED = "asked"
    RENEWING = "renewing"
    OUTLIVING = "outliving"
    DONE = "done"

    @property
    def words(self) -> str:
        """Says it to people, after "waits"."""
        return _WORDS[self]


_WORDS: Mapping[Stage, str] = MappingProxyType(
    {
        Stage.CATCHING_UP: "for members that missed the last rotation",
        Stage.ANNOUNCED: "for every proxy of every member to trust the new root",
        Stage.SIGNING: "for every member to sign below the new root, and every proxy to hold a certificate below it",
        Stage.RETIRING: "for every proxy of every member to forget the old root",
        Stage.TRUSTING: "for every proxy of every member to trust the root that signs",
        Stage.ASKED: "for the cluster to ask for its new authority and to take it",
        Stage.RENEWING: "for every proxy of the cluster to hold a certificate of the new authority",
        Stage.OUTLIVING: "for the cluster to let the key of the old authority go",
        Stage.DONE: "for nothing: it is done",
    }
)

BREAKS: Mapping[Stage, str] = MappingProxyType(
    {
        Stage.CATCHING_UP: "Who missed the last rotation may be unable to call others, or to be called, until then",
        Stage.ANNOUNCED: "Proxies that do not trust the new root will refuse whoever shows a certificate below it",
        Stage.SIGNING: "Proxies whose certificate is below the old root will be refused by all others",
        Stage.RETIRING: "Proxies that still trust the old root go on trusting it; its key is destroyed all the same",
        Stage.TRUSTING: "Proxies that do not trust the root that signs will refuse the cluster's new certificates",
    }
)
"""What an advance without proof breaks, by the stage that is left. The others wait for what nobody can skip."""


class RotationReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How a rotation ended, for now. `stage` is "done", or what it waits for, and then `holdups` says for whom.

    `sequence` is that of the newest trust bundle. `granted` names who got a new authority in this run, `caught_up` whom
    it handed what had been missed, `forced` the stages that were left without proof; `not_reached` are the control
    planes that did not answer here: they hear from the others.
    """

    rotation: str
    stage: Stage
    sequence: int
    is_done: bool
    holdups: tuple[Holdup, ...] = ()
    granted: tuple[ClusterName, ...] = ()
    caught_up: tuple[ClusterName, ...] = ()
    forced: tuple[Stage, ...] = ()
    not_reached: tuple[Silent, ...] = ()
    was_begun: bool = True

    @property
    def goes_on(self) -> bool:
        """Says whether what is missing needs nothing of the root any more."""
        return self.stage in (Stage.RENEWING, Stage.OUTLIVING)


def missed(bundle: TrustBundle, members: Statements) -> tuple[ClusterName, ...]:
    """Returns who does not follow the roots of `bundle`, or does not sign as it asks, by name: who was away."""
    return tuple(
        holdup.cluster
        for holdup in authority_holdups(bundle, members)
        if (said := members[holdup.cluster])
        and (said.bundle != bundle_digest(bundle) or not signs_as_asked(bundle, holdup.cluster, said))
    )


def is_under_way(bundle: TrustBundle, cluster: ClusterName, said: TrustStatement | None) -> bool:
    """Says whether a member was asked for an authority and has not finished with that."""
    if said is None:
        return bundle.generations.get(cluster, 1) > 1
    return not signs_as_asked(bundle, cluster, said) or len(said.authorities) > 1
