"""Which proxy may be told what: the door says who it is, the picture what it stands beside."""

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn

from federation.model import Audience, ClusterSettings, Locality, Pod, PodKey, ProxyRole, ProxyScope
from federation.names import parse_node
from federation.snapshot import Snapshot
from federation.xds.ads import Admitted, ProxyNode
from federation.xds.server import Refused, Unauthenticated, Unavailable
from trust.attestation import (
    AttestationRefused,
    AttestationUnavailable,
    Attestor,
    Door,
    Proof,
    TokenRole,
)
from trust.audit import AuditEvent, AuditKind, harmless
from trust.spiffe import ClusterName, Identity, gateway_identity, is_dns_name

log = logging.getLogger(__name__)

_LONGEST_NODE = 400  # characters: a cluster, a namespace and a pod have 63 + 63 + 253
_REMEMBERED_REFUSALS = 256  # strangers may invent names without end


class _Guest(Admitted, frozen=True, kw_only=True):
    """One who was let in, by which proof, and who knows when that ends."""

    shown: Proof
    attestor: Attestor


class Admissions:
    """The `Admission` of the ADS server: asks the door, and tells the audit trail of everybody who is turned away."""

    def __init__(self, settings: ClusterSettings, door: Door, on_event: Callable[[AuditEvent], None]) -> None:
        self._settings = settings
        self._door = door
        self._on_event = on_event
        self._refused: dict[str, str] = {}  # node -> why: the log says it once, the trail counts

    async def admit(self, node: ProxyNode, token: str) -> Admitted:
        """Returns whom the token speaks for; raises Refused, Unauthenticated or Unavailable.

        The token is claimed by the node only after it is certain that it may be that node's.
        """
        now = datetime.now(UTC)
        try:
            proof, attestor = await self._door.attest(token, now=now)
            identity = self._checked(node, proof)
            await attestor.claim(token, node.id, now=now)
        except AttestationUnavailable as error:
            raise Unavailable(error.message) from error
        except AttestationRefused as error:
            self._turn_away(node, error)
        return _Guest(identity, str(proof), shown=proof, attestor=attestor)

    async def ended(self, node: ProxyNode, admitted: Admitted) -> None:
        """Waits while the proof is good; then raises Unauthenticated."""
        if not isinstance(admitted, _Guest):
            raise TypeError(f"{admitted} was let in by somebody else")
        ended = admitted.attestor.ended(admitted.shown, node.id)
        if ended is None:
            await asyncio.Event().wait()  # until the stream is cancelled: at its age
        else:
            self._turn_away(node, await ended)

    def scope(self, snapshot: Snapshot, node: ProxyNode, identity: Identity) -> ProxyScope | None:
        """Returns the scope of a proxy; None for a sidecar whose pod the picture does not hold. Raises Refused."""
        try:
            scope = self._scope(snapshot, node, identity)
        except Refused as error:
            self._tell(node, str(error))
            raise
        if scope is not None:
            self._refused.pop(node.id, None)
        return scope

    def _checked(self, node: ProxyNode, proof: Proof) -> Identity:
        """Returns the identity of a node that a proof is for; raises Refused for every other node."""
        try:
            cluster, name = self._parse(node)
            match proof.role, name:
                case (TokenRole.SIDECAR, PodKey(namespace=namespace)) if namespace == proof.namespace:
                    identity = proof.identity(cluster)
                    own_name = name.name
                case (TokenRole.GATEWAY, str() as own_name):
                    identity = gateway_identity(cluster)
                case _:
                    raise Refused(f"the token of {proof.role} {proof.namespace}/{proof.account} is not for {node.id}")
            if proof.pod is not None and proof.pod.name != own_name:
                raise Refused(f"the token of pod {proof.namespace}/{proof.pod.name} is not for {node.id}")
        except Refused as error:
            self._tell(node, str(error), proof=str(proof))
            raise
        return identity

    def _scope(self, snapshot: Snapshot, node: ProxyNode, identity: Identity) -> ProxyScope | None:
        cluster, name = self._parse(node)
        match name:
            case PodKey():
                pod = snapshot.pods.get(name)
                if pod is None:
                    return None
                if pod.account != identity.account:
                    raise Refused(f"pod {name} runs as {pod.account}, and the token is of {identity.account}")
                audience = self._audience(ProxyRole.SIDECAR, self._locality(pod), identity)
                return ProxyScope(audience=audience, identity=identity, address=pod.address, pod=pod)
            case str():
                here = Locality(region=self._settings.region, cloud=self._settings.cloud)
                audience = self._audience(ProxyRole.GATEWAY, here, gateway_identity(cluster))
                address = node.metadata.get("address", "")
                if not address:
                    raise Refused(f"gateway {name} does not say its address (node metadata `address`)")
                if not _is_address(address):
                    raise Refused(f"gateway {name} listens on {address[:_LONGEST_NODE]!r}, which is no IP address")
                return ProxyScope(audience=audience, identity=identity, address=address)

    def _parse(self, node: ProxyNode) -> tuple[ClusterName, PodKey | str]:
        parsed = parse_node(node.id) if len(node.id) <= _LONGEST_NODE else None
        # What it calls itself ends in etcd, in lists, and in what other clusters are told of it.
        if parsed is None or not all(is_dns_name(part) for part in node.id.split("/")):
            raise Refused(f"{_short(node)!r} is no node id: <cluster>/<namespace>/<pod> or <cluster>/<gateway>")
        if parsed[0] != self._settings.name:
            raise Refused(f"{node.id} is a proxy of cluster {parsed[0]}, and this is {self._settings.name}")
        return parsed

    def _turn_away(self, node: ProxyNode, error: AttestationRefused) -> NoReturn:
        detail = f": {error.detail}" if error.detail else ""
        self._tell(node, error.message + detail, proof=error.proof)
        raise Unauthenticated(f"{error.message}; {error.hint}") from error

    def _tell(self, node: ProxyNode, reason: str, *, proof: str = "") -> None:
        """Tells the audit trail of a refusal, and the log, but not again at every retry."""
        name, reason = harmless(_short(node)), harmless(reason)
        asked_by = f"{name} ({node.peer})"
        self._on_event(
            AuditEvent(
                kind=AuditKind.REFUSED,
                at=datetime.now(UTC),
                subject=name,
                asked_by=asked_by,
                proof=proof,
                reason=reason,
            )
        )
        if self._refused.get(name) != reason:
            if len(self._refused) >= _REMEMBERED_REFUSALS:
                self._refused.clear()
            self._refused[name] = reason
            log.warning("proxy refused", extra={"node": name, "reason": reason})

    def _audience(self, role: ProxyRole, locality: Locality, identity: Identity) -> Audience:
        return Audience(
            role=role,
            cluster=self._settings.name,
            network=self._settings.network,
            locality=locality,
            namespace=identity.namespace,
        )

    def _locality(self, pod: Pod) -> Locality:
        return Locality(
            region=pod.locality.region or self._settings.region,
            zone=pod.locality.zone,
            cloud=pod.locality.cloud or self._settings.cloud,
        )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _short(node: ProxyNode) -> str:
    """Returns the name of a node for the log: whoever asks may call himself anything."""
    return node.id if len(node.id) <= _LONGEST_NODE else node.id[:_LONGEST_NODE] + "..."
