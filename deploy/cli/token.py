"""`isthmus token`: what proxies prove themselves with."""

import asyncio
from datetime import UTC, datetime, timedelta

import click
from rich.console import RenderableType

from deploy.cli.output import ago, output_option, show, span, table
from deploy.cli.spans import Span
from deploy.cli.targets import Targets, target_options
from federation.reports import KnownTokenReport, TokenReport
from trust.join_tokens import TokenState, parse_token_id


@click.group()
def token() -> None:
    """Make, list and revoke the tokens that proxies prove themselves with."""


@token.command()
@click.option("-n", "--namespace", default="", help="Namespace of the workload.")
@click.option("--service-account", default="", help="Service account of the workload.")
@click.option("--gateway", is_flag=True, help="For the east-west gateways of the cluster, instead of a workload.")
@click.option("--ttl", type=Span(), help="How long it is good, such as 24h.  [default: until it is revoked]")
@click.option("--once", is_flag=True, help="Good for one proxy: the first that shows it. It may come back.")
@target_options
@output_option
def create(
    targets: Targets,
    output: str,
    *,
    namespace: str,
    service_account: str,
    gateway: bool,
    ttl: timedelta | None,
    once: bool,
) -> None:
    """Make a join token for the proxies of one service account, and print it: it is told this once only."""
    if gateway == bool(namespace or service_account):
        raise click.UsageError("give either --gateway, or --namespace and --service-account")
    if not gateway and not (namespace and service_account):
        raise click.UsageError("a workload has both: --namespace and --service-account")
    if ttl is not None and ttl <= timedelta():
        raise click.UsageError("--ttl is a time from now on, such as 24h")

    async def ask() -> TokenReport:
        async with targets.only() as client:
            if gateway:
                return await client.create_token("isthmus-system", "gateway", "gateway", ttl=ttl, once=once)
            return await client.create_token(namespace, service_account, "sidecar", ttl=ttl, once=once)

    made = asyncio.run(ask())
    show(made, output, lambda: made.token)


@token.command("list")
@target_options
@output_option
def list_tokens(targets: Targets, output: str) -> None:
    """List the join tokens of a cluster by their ids. The tokens themselves are kept nowhere."""

    async def ask() -> tuple[KnownTokenReport, ...]:
        async with targets.only() as client:
            return await client.tokens()

    found = asyncio.run(ask())
    show(found, output, lambda: _render(found))


@token.command()
@click.argument("token_id", metavar="ID")
@target_options
@output_option
def revoke(targets: Targets, output: str, *, token_id: str) -> None:
    """Take a join token back: proxies that it admitted lose their streams at once, and get no new certificate."""
    parse_token_id(token_id)  # here, so that a token which is taken for its id goes nowhere

    async def ask() -> KnownTokenReport:
        async with targets.only() as client:
            return await client.revoke_token(token_id)

    gone = asyncio.run(ask())
    whose = f" of {gone.namespace}/{gone.account}" if gone.account else ""
    show(gone, output, lambda: f"The token {gone.id}{whose} is revoked.")


def _render(found: tuple[KnownTokenReport, ...]) -> RenderableType:
    if not found:
        return "There are no join tokens. Make one: isthmus token create -n NAMESPACE --service-account ACCOUNT"
    now = datetime.now(UTC)
    rows = [
        (
            one.id,
            f"{one.namespace}/{one.account}" if one.account else "-",
            one.role or "-",
            _state(one),
            ago(one.created, now),
            _left(one.expires, now),
            ago(one.last_used, now),
        )
        for one in found
    ]
    return table(["ID", "FOR", "ROLE", "STATE", "AGE", "EXPIRES IN", "LAST USED"], rows)


def _state(one: KnownTokenReport) -> str:
    match one.state:
        case TokenState.USED:
            return f"used by {one.claimed_by}"
        case TokenState.GOOD:
            return "good, once" if one.once else "good"
        case TokenState.EXPIRED | TokenState.BROKEN:
            return one.state.value


def _left(expires: datetime | None, now: datetime) -> str:
    if expires is None:
        return "never"
    return span(expires - now) if expires > now else "-"
