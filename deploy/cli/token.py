"""`isthmus token`: what proxies prove themselves with."""

import asyncio

import click

from deploy.cli.output import output_option, show
from deploy.cli.targets import Targets, target_options
from federation.reports import TokenReport


@click.group()
def token() -> None:
    """Make the tokens that proxies prove themselves with."""


@token.command()
@click.option("-n", "--namespace", default="", help="Namespace of the workload.")
@click.option("--service-account", default="", help="Service account of the workload.")
@click.option("--gateway", is_flag=True, help="For the east-west gateways of the cluster, instead of a workload.")
@target_options
@output_option
def create(targets: Targets, output: str, *, namespace: str, service_account: str, gateway: bool) -> None:
    """Make a join token for the proxies of one service account, and print it: it is told this once only."""
    if gateway == bool(namespace or service_account):
        raise click.UsageError("give either --gateway, or --namespace and --service-account")
    if not gateway and not (namespace and service_account):
        raise click.UsageError("a workload has both: --namespace and --service-account")

    async def ask() -> TokenReport:
        async with targets.one() as client:
            if gateway:
                return await client.create_token("isthmus-system", "gateway", "gateway")
            return await client.create_token(namespace, service_account, "sidecar")

    made = asyncio.run(ask())
    show(made, output, lambda: made.token)
