"""A real Envoy follows its control plane to another root when the file that says whom to trust is replaced."""

import json
from pathlib import Path

from deploy.lab.state import write_atomically
from federation.model import Locality
from federation.xds.bootstrap import bootstrap, token_file, trust_bundle_file
from tests.support.addresses import free_address
from tests.support.envoy import start_envoy
from tests.support.identities import MeshIdentities
from tests.support.pushing import ADS_PORT, Pushing
from tests.support.two_clusters import DOMAIN
from tests.support.waiting import eventually
from trust.spiffe import ClusterName, control_dns_name, control_identity, spiffe_id

NODE = "east/shop/client"
CONTROL = control_identity(ClusterName("east"))


async def test_a_new_root_reaches_an_envoy_without_a_restart(tmp_path: Path) -> None:
    address = free_address()
    pushing = Pushing(address)
    pushing.show({NODE: {}})
    before, after = MeshIdentities(DOMAIN), MeshIdentities(DOMAIN)
    trust = tmp_path / "trust" / "bundle.json"
    trust.parent.mkdir()
    write_atomically(trust, trust_bundle_file(before.root_pem))
    write_atomically(tmp_path / "token.json", token_file("secret"))
    config = bootstrap(
        NODE,
        Locality("eu", "a"),
        address=address,
        control_addresses=[(address, ADS_PORT)],
        control_dns_name=control_dns_name(CONTROL.cluster, DOMAIN),
        control_spiffe_id=spiffe_id(CONTROL, DOMAIN),
        trust_bundle_path=str(trust),
        token_path=str(tmp_path / "token.json"),
    )
    async with start_envoy(json.loads(json.dumps(config)), folder=tmp_path) as envoy:
        async with pushing.serve(before.leaf(CONTROL)):
            await envoy.wait_live()
            await eventually(lambda: NODE in pushing.connected, "the proxy comes")
        process = envoy.pid
        refused = await envoy.stat("cluster.xds.ssl.fail_verify_error")
        async with pushing.serve(after.leaf(CONTROL)):
            await envoy.wait_stat("cluster.xds.ssl.fail_verify_error", lambda count: count > refused)
            assert NODE not in pushing.connected
            write_atomically(trust, trust_bundle_file(before.root_pem + after.root_pem))
            await eventually(lambda: NODE in pushing.connected, "the proxy believes the new root")
            # An open stream does not end when its root is no longer trusted.
            write_atomically(trust, trust_bundle_file(after.root_pem))
            await pushing.settled()
        async with pushing.serve(before.leaf(CONTROL)):
            refused = await envoy.stat("cluster.xds.ssl.fail_verify_error")
            await envoy.wait_stat("cluster.xds.ssl.fail_verify_error", lambda count: count > refused)
            assert NODE not in pushing.connected
        assert envoy.pid == process
        assert envoy.is_running
