"""Service account tokens of Kubernetes: the API server says whose they are, and this whether that is a proof.

A pod's projected token is shown instead of a join token. It must have been made for us (its audience), so that a
token which a pod shows to somebody else does not open this door. Pure, but for the call behind `TokenReviewApi`.

Source: TokenReview v1 (https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/);
the extra keys: KEP-4193 and https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from trust.attestation import AttestationRefused, PodBinding, Proof, TokenRole, check_subject
from trust.spiffe import (
    GATEWAY_ACCOUNT,
    SYSTEM_NAMESPACE,
    Namespace,
    ServiceAccount,
    is_dns_label,
    is_dns_name,
)

AUDIENCE = "isthmus"
"""What a projected token has to be made for (`serviceAccountToken.audience`)."""
HOW = "kubernetes"
"""How a proof by TokenReview calls itself."""

POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"

_USER = "system:serviceaccount:"
_HINT = f"project a service account token with the audience {AUDIENCE!r} into the pod"
_LONGEST = 200  # characters of what the API server says


class TokenReviewUser(msgspec.Struct, frozen=True):
    """`status.user`: whom the API server takes the bearer for."""

    username: str = ""
    uid: str = ""
    extra: Mapping[str, Sequence[str]] = {}


class TokenReviewStatus(msgspec.Struct, frozen=True):
    """`status` of a TokenReview. Fields that Kubernetes adds are skipped."""

    authenticated: bool = False
    user: TokenReviewUser = TokenReviewUser()
    audiences: Sequence[str] = ()
    error: str = ""


class TokenReviewApi(Protocol):
    """The one call to the API server."""

    async def review(self, token: str, *, audiences: Sequence[str]) -> TokenReviewStatus:
        """Creates a TokenReview with `spec.token` and `spec.audiences`, and returns its status.

        Raises trust.attestation.AttestationUnavailable when the API server does not answer in time.
        """


class TokenReviews:
    """The `Attestor` of service account tokens."""

    def __init__(self, api: TokenReviewApi, *, audience: str = AUDIENCE) -> None:
        self._api = api
        self._audience = audience

    def recognizes(self, credential: str) -> bool:
        """Says whether a credential has the shape of a JWT: three parts."""
        return is_jwt(credential)

    async def attest(self, credential: str, *, now: datetime) -> Proof:
        """Asks the API server; it knows the time, so `now` is not looked at."""
        return verify(await self._api.review(credential, audiences=(self._audience,)), audience=self._audience)

    async def claim(self, credential: str, node: str, *, now: datetime) -> None:
        """Does nothing: what binds a token to one pod stands in the token."""

    def ended(self, proof: Proof, node: str) -> None:
        """Returns None: the API server tells nobody that it took a token back; the next stream finds out."""


def is_jwt(credential: str) -> bool:
    """Says whether a text has the shape of a JWT: three parts of base64url with dots between (RFC 7519, section 3)."""
    parts = credential.split(".")
    return len(parts) == 3 and all(
        part and part.isascii() and part.replace("-", "").replace("_", "").isalnum() for part in parts
    )


def verify(status: TokenReviewStatus, *, audience: str = AUDIENCE) -> Proof:
    """Returns what the bearer of the reviewed token proves; raises AttestationRefused.

    An API server that knows no audiences answers without any; that is refused too: the token could be for anybody.
    """
    if status.error:
        raise _refused("the API server could not review the token", detail=status.error)
    if not status.authenticated:
        raise _refused("the API server does not know the token: it is false or has expired")
    if audience not in status.audiences:
        raise _refused("the token was not made for this mesh", detail=f"audiences {list(status.audiences)[:8]}")
    namespace, account = parse_username(status.user.username)
    is_gateway = (namespace, account) == (SYSTEM_NAMESPACE, GATEWAY_ACCOUNT)
    role = TokenRole.GATEWAY if is_gateway else TokenRole.SIDECAR
    check_subject(namespace, account, role)
    pod = _pod(status.user.extra)
    reference = (
        _one(status.user.extra, CREDENTIAL_ID) or (pod.uid or pod.name if pod else "") or f"{namespace}/{account}"
    )
    return Proof(namespace=namespace, account=account, role=role, how=HOW, reference=reference[:_LONGEST], pod=pod)


def parse_username(text: str) -> tuple[Namespace, ServiceAccount]:
    """Parses `system:serviceaccount:<namespace>:<account>`; raises AttestationRefused for every other user."""
    parts = text.removeprefix(_USER).split(":") if text.startswith(_USER) else []
    if len(parts) != 2 or not is_dns_label(parts[0]) or not is_dns_name(parts[1]):
        raise _refused("the token is not of a service account", detail=text)
    return Namespace(parts[0]), ServiceAccount(parts[1])


def _pod(extra: Mapping[str, Sequence[str]]) -> PodBinding | None:
    name, uid = _one(extra, POD_NAME), _one(extra, POD_UID)
    if not name:
        if uid:  # bound to a pod that is not named: it could be any
            raise _refused("the token is bound to a pod without a name")
        return None
    if not is_dns_name(name):
        raise _refused("the token is bound to what is no pod", detail=name)
    return PodBinding(name, uid)


def _one(extra: Mapping[str, Sequence[str]], key: str) -> str:
    """Returns the value of an extra key, "" when it is not there; raises AttestationRefused when there are several."""
    match list(extra.get(key, ())):
        case []:
            return ""
        case [value] if value:
            return value
        case values:
            raise _refused(f"the token says {len(values)} things about {key}")


def _refused(message: str, *, detail: str = "") -> AttestationRefused:
    return AttestationRefused(message, _HINT, proof=HOW, detail=detail[:_LONGEST])
