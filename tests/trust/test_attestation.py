"""The door asks whoever knows the shape of what is shown, believes nobody about system names, and repeats nothing."""

from collections.abc import Awaitable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trust import EAST
from trust.attestation import AttestationRefused, Door, Proof, TokenRole
from trust.spiffe import CONTROL_ACCOUNT, GATEWAY_ACCOUNT, SYSTEM_NAMESPACE, Identity, Namespace, ServiceAccount

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


class ByPrefix:
    """Believes whoever begins right: `<prefix><namespace>/<account>`."""

    def __init__(self, prefix: str, role: TokenRole = TokenRole.SIDECAR) -> None:
        self.prefix = prefix
        self.role = role
        self.asked: list[str] = []

    def recognizes(self, credential: str) -> bool:
        return credential.startswith(self.prefix)

    async def attest(self, credential: str, *, now: datetime) -> Proof:
        self.asked.append(credential)
        namespace, _, account = credential.removeprefix(self.prefix).partition("/")
        return Proof(
            namespace=Namespace(namespace),
            account=ServiceAccount(account),
            role=self.role,
            how=self.prefix,
            reference="1",
        )

    async def claim(self, credential: str, node: str, *, now: datetime) -> None: ...

    def ended(self, proof: Proof, node: str) -> Awaitable[AttestationRefused] | None:
        return None


async def test_the_first_that_knows_the_shape_is_asked_and_nobody_else() -> None:
    first, second, third = ByPrefix("a-"), ByPrefix("b-"), ByPrefix("b-")
    proof, attestor = await Door([first, second, third]).attest("b-shop/cart", now=NOW)
    assert (proof.identity(EAST), str(proof)) == (
        Identity(EAST, Namespace("shop"), ServiceAccount("cart")),
        "b- 1",
    )
    assert attestor is second
    assert not first.asked
    assert not third.asked


@given(st.text(min_size=12))
async def test_what_nobody_knows_is_refused_and_not_repeated(credential: str) -> None:
    for door in (Door([]), Door([ByPrefix("a-")])):
        if not credential.startswith("a-"):
            with pytest.raises(AttestationRefused) as refusal:
                await door.attest(credential, now=NOW)
            assert credential not in refusal.value.message + refusal.value.hint


async def test_nobody_is_asked_about_megabytes() -> None:
    attestor = ByPrefix("a-")
    with pytest.raises(AttestationRefused):
        await Door([attestor]).attest("a-" + "x" * 10_000_000, now=NOW)
    assert not attestor.asked


@pytest.mark.parametrize(
    ("subject", "role"),
    [
        (f"{SYSTEM_NAMESPACE}/{CONTROL_ACCOUNT}", TokenRole.SIDECAR),
        (f"{SYSTEM_NAMESPACE}/{GATEWAY_ACCOUNT}", TokenRole.SIDECAR),
        (f"{SYSTEM_NAMESPACE}/{CONTROL_ACCOUNT}", TokenRole.GATEWAY),
        ("shop/gateway", TokenRole.GATEWAY),
        ("shop/../../x", TokenRole.SIDECAR),
        ("/", TokenRole.SIDECAR),
    ],
)
async def test_no_attestor_is_believed_about_names_that_its_bearer_may_not_have(subject: str, role: TokenRole) -> None:
    with pytest.raises(AttestationRefused):
        await Door([ByPrefix("a-", role)]).attest(f"a-{subject}", now=NOW)
