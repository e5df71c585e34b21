"""A small simulation: the code of the large one, kept from rotting. It asserts no times, only that all came through."""

from tests.benchmarks.figures import tables
from tests.benchmarks.plan import Plan
from tests.benchmarks.simulation import prepare


async def test_a_small_mesh_is_simulated_and_every_picture_equals_what_was_offered() -> None:
    plan = Plan(
        members=3,
        services=10,
        quiet_changes=4,
        sender_changes=2,
        quiet_pause=0.1,
        sidecars=2,
        rates=(20.0,),
        churn_seconds=1.0,
        idle_seconds=0.5,
        join_seconds=0.5,
        settle_seconds=0.5,
    )

    async with prepare(plan) as simulation:
        figures = await simulation.run()

    assert figures.is_consistent
    (join,), (churned,) = figures.joins, figures.churn
    assert join.newcomer.puts >= join.services, "it holds in etcd what it has learnt"
    assert join.newcomer.received > 0
    one_by_one = figures.one_by_one
    assert one_by_one.first.count == one_by_one.last.count == one_by_one.changes
    assert one_by_one.sidecar.count > 0
    assert one_by_one.per_change.puts >= 3, "each member writes into its etcd what it learns, and the origin too"
    assert churned.changes > 0
    assert churned.picture.count > 0
    assert churned.sidecar.count > 0
    assert len(tables(figures)) == 4
