"""What the API server says of a service account token is a proof of one identity, or no proof at all."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.attestation import AttestationRefused, AttestationUnavailable, Door, PodBinding, Proof, TokenRole
from trust.join_tokens import new_token
from trust.spiffe import Namespace, ServiceAccount, is_dns_label, is_dns_name
from trust.token_review import (
    CREDENTIAL_ID,
    POD_NAME,
    POD_UID,
    TokenReviews,
    TokenReviewStatus,
    TokenReviewUser,
    is_jwt,
    parse_username,
    verify,
)

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYXJ0In0.c2lnbmF0dXJlLXdoaWNoLWlzLWxvbmc"
CART = "system:serviceaccount:shop:cart"


def status(
    username: str = CART,
    *,
    authenticated: bool = True,
    audiences: Sequence[str] = ("isthmus",),
    error: str = "",
    extra: Mapping[str, Sequence[str]] | None = None,
) -> TokenReviewStatus:
    user = TokenReviewUser(username=username, uid="1", extra=extra or {})
    return TokenReviewStatus(authenticated=authenticated, user=user, audiences=audiences, error=error)


class ApiServer:
    """Answers as it is told: the API server of a test."""

    def __init__(self, answer: TokenReviewStatus | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    async def review(self, token: str, *, audiences: Sequence[str]) -> TokenReviewStatus:
        self.asked.append((token, tuple(audiences)))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_reviewed_token_proves_its_service_account_and_its_pod() -> None:
    extra = {POD_NAME: ["cart-1"], POD_UID: ["6c1d"], CREDENTIAL_ID: ["JTI=7f"], "other": ["x", "y"]}
    assert verify(status(extra=extra)) == Proof(
        namespace=Namespace("shop"),
        account=ServiceAccount("cart"),
        role=TokenRole.SIDECAR,
        how="kubernetes",
        reference="JTI=7f",
        pod=PodBinding("cart-1", "6c1d"),
    )
    assert verify(status()).pod is None
    gateway = verify(status("system:serviceaccount:isthmus-system:gateway"))
    assert (gateway.role, gateway.account) == (TokenRole.GATEWAY, "gateway")


@pytest.mark.parametrize(
    "answer",
    [
        TokenReviewStatus(),
        status(authenticated=False),
        status(error="token lookup failed"),
        status(audiences=()),
        status(audiences=["https://kubernetes.default.svc"]),
        status(audiences=["Isthmus", "isthmus ", "isthmus.example"]),
        status("system:serviceaccount:isthmus-system:control"),
        status("system:node:worker-1"),
        status("system:admin"),
        status("cart"),
        status(""),
        status("system:serviceaccount:shop"),
        status("system:serviceaccount:shop:"),
        status("system:serviceaccount::cart"),
        status("system:serviceaccount:shop:cart:x"),
        status("system:serviceaccount:shop:cart "),
        status("system:serviceaccount:shop:cart\n"),
        status("System:serviceaccount:shop:cart"),
        status("system:serviceaccount:Shop:cart"),
        status("system:serviceaccount:shop.a:cart"),
        status("system:serviceaccount:shop:cart/../x"),
        status("x:system:serviceaccount:shop:cart"),
        status(extra={POD_NAME: ["cart-1", "cart-2"]}),
        status(extra={POD_NAME: [""]}),
        status(extra={POD_NAME: ["cart-1"], POD_UID: ["1", "2"]}),
        status(extra={POD_UID: ["1"]}),
        status(extra={POD_NAME: ["../cart"]}),
    ],
    ids=str,
)
def test_anything_else_proves_nothing(answer: TokenReviewStatus) -> None:
    with pytest.raises(AttestationRefused) as refusal:
        verify(answer)
    assert refusal.value.hint


names = st.text(alphabet=st.sampled_from("abz019-.:/ A_\n"), max_size=12)


@given(names, names)
def test_a_name_is_parsed_as_what_it_says_or_not_at_all(namespace: str, account: str) -> None:
    text = f"system:serviceaccount:{namespace}:{account}"
    if is_dns_label(namespace) and is_dns_name(account):
        assert parse_username(text) == (namespace, account)
    else:
        with pytest.raises(AttestationRefused):
            parse_username(text)


@given(st.text(), st.booleans(), st.lists(st.text(), max_size=2), st.dictionaries(st.text(), st.lists(st.text())))
def test_no_answer_is_mistaken_for_a_proof(
    username: str, authenticated: bool, audiences: list[str], extra: dict[str, list[str]]
) -> None:
    answer = status(username, authenticated=authenticated, audiences=audiences, extra=extra)
    try:
        proof = verify(answer)
    except AttestationRefused:
        return
    assert authenticated
    assert "isthmus" in audiences
    assert username == f"system:serviceaccount:{proof.namespace}:{proof.account}"


async def test_the_api_server_is_asked_about_our_audience() -> None:
    api = ApiServer(status())
    reviews = TokenReviews(api)
    proof, attestor = await Door([reviews]).attest(JWT, now=NOW)
    assert proof.account == "cart"
    assert api.asked == [(JWT, ("isthmus",))]
    await attestor.claim(JWT, "east/shop/cart-1", now=NOW)
    assert attestor.ended(proof, "east/shop/cart-1") is None
    assert JWT not in repr(proof) + str(vars(reviews))


async def test_an_api_server_that_is_away_is_no_refusal() -> None:
    with pytest.raises(AttestationUnavailable):
        await Door([TokenReviews(ApiServer(AttestationUnavailable("away", "wait")))]).attest(JWT, now=NOW)


def test_a_jwt_is_known_by_its_three_parts() -> None:
    assert is_jwt(JWT)
    for text in ("", "a.b", "a..c", "a.b.c.d", "a.b.c\n", "a.b.ü", new_token(), "a b.c.d"):
        assert not is_jwt(text), text


def test_what_kubernetes_adds_to_the_status_is_skipped() -> None:
    text = b'{"authenticated":true,"user":{"username":"x","groups":["g"]},"audiences":["isthmus"],"later":1}'
    assert msgspec.json.decode(text, type=TokenReviewStatus).user.username == "x"
