"""The door: what a proxy shows becomes a proof of who it is, or a refusal. Pure values and shapes.

        Authorization: Bearer <credential> --> Door --> the first Attestor that knows its shape --> Proof
                                                                                                --> AttestationRefused

There are two attestors: join tokens (`join_tokens`) and service account tokens of Kubernetes (`token_review`). Another
one is another implementation of `Attestor`; nothing behind the door knows how somebody proved who they are. A proof is
for the one identity that stands in it: who holds it gets no certificate but that one.
"""

from collections.abc import Awaitable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Protocol

import msgspec

from trust.refusals import Refusal
from trust.spiffe import (
    CONTROL_ACCOUNT,
    GATEWAY_ACCOUNT,
    SYSTEM_NAMESPACE,
    ClusterName,
    Identity,
    Namespace,
    ServiceAccount,
    is_dns_label,
    is_dns_name,
)

HINT = "make a token with `isthmus token create` and put it into the token file of the proxy"

_LONGEST_CREDENTIAL = 16_384  # characters: a service account token has some 1,000


class AttestationRefused(Refusal):
    """Somebody who could not prove who they are, or a token that may not be made.

    `proof` names what was shown, where it has a name; `detail` is for the audit trail and not for who asked.
    """

    def __init__(self, message: str, hint: str, *, proof: str = "", detail: str = "") -> None:
        super().__init__(message, hint)
        self.proof = proof
        self.detail = detail


class AttestationUnavailable(Refusal):
    """Who could say whether the credential is good does not answer; it may be shown again later."""


class TokenRole(StrEnum):
    """What kind of proxy a credential is for."""

    SIDECAR = "sidecar"
    GATEWAY = "gateway"


class PodBinding(msgspec.Struct, frozen=True):
    """The one pod, of the proof's namespace, that a credential was made for. `uid` may be empty."""

    name: str
    uid: str = ""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Who somebody proved to be.

    `how` is the kind of the proof (`join-token`, `kubernetes`), `reference` names what was shown and may be logged: the
    id of a token, never the token. Whoever shows it has to be the pod `pod`, where there is one.
    """

    namespace: Namespace
    account: ServiceAccount
    role: TokenRole
    how: str
    reference: str
    pod: PodBinding | None = None

    def __str__(self) -> str:
        """Names the proof in logs: `join-token 3fa9c1d27b60`."""
        return f"{self.how} {self.reference}"

    def identity(self, cluster: ClusterName) -> Identity:
        """Returns whom its bearer speaks for in `cluster`."""
        return Identity(cluster=cluster, namespace=self.namespace, account=self.account)


class Attestor(Protocol):
    """Knows one kind of credential. Both calls raise AttestationRefused and AttestationUnavailable."""

    def recognizes(self, credential: str) -> bool:
        """Says by the shape alone whether a credential is of this kind."""

    async def attest(self, credential: str, *, now: datetime) -> Proof:
        """Returns what a credential proves, if it is good. Changes nothing."""

    async def claim(self, credential: str, node: str, *, now: datetime) -> None:
        """Notes that the proxy `node` uses a credential that is good for it; refuses one that is another's alone."""

    def ended(self, proof: Proof, node: str) -> Awaitable[AttestationRefused] | None:
        """Waits until the proof is no longer good for `node`, and returns why. None: only asking anew will tell."""


class Door:
    """Asks the attestor that knows the shape of a credential; the first of several."""

    def __init__(self, attestors: Sequence[Attestor]) -> None:
        self._attestors = tuple(attestors)

    async def attest(self, credential: str, *, now: datetime) -> tuple[Proof, Attestor]:
        """Returns what a credential proves, and who will hear of its use.

        Raises AttestationRefused, which never repeats the credential, and AttestationUnavailable.
        """
        if not credential:
            raise AttestationRefused("there is no token: the authorization header must be 'Bearer ...'", HINT)
        if len(credential) <= _LONGEST_CREDENTIAL:
            for attestor in self._attestors:
                if attestor.recognizes(credential):
                    proof = await attestor.attest(credential, now=now)
                    check_subject(proof.namespace, proof.account, proof.role)  # whatever an attestor says
                    return proof, attestor
        raise AttestationRefused("what was shown is no token that anybody knows here", HINT)


def check_subject(namespace: str, account: str, role: TokenRole) -> None:
    """Checks that the role may be had by that account; raises AttestationRefused.

    A sidecar that called itself the control plane or a gateway could take over the cluster's streams and tunnels.
    """
    name = f"{namespace}/{account}"
    if not is_dns_label(namespace) or not is_dns_name(account):
        raise AttestationRefused(f"{name!r} is not a namespace and a service account", "use Kubernetes names")
    is_system = namespace == SYSTEM_NAMESPACE
    match role:
        case TokenRole.GATEWAY if not (is_system and account == GATEWAY_ACCOUNT):
            raise AttestationRefused(
                f"a gateway is {SYSTEM_NAMESPACE}/{GATEWAY_ACCOUNT}, not {name}",
                "leave namespace and account as they are",
            )
        case TokenRole.SIDECAR if is_system and account in (CONTROL_ACCOUNT, GATEWAY_ACCOUNT):
            raise AttestationRefused(f"no workload may be {name}", "choose another service account for the workload")
        case TokenRole.GATEWAY | TokenRole.SIDECAR:
            pass
