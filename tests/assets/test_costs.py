"""The costs of a month, from prices that are data and from real use, and whether to move to another
store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from atelier.assets.v1 import storage_report_pb2 as pb

from services.assets.accounting import costs
from tests.assets import storage
from tests.suite import Client, Suite

GB = costs.GIGABYTE
SHIPPED = costs.load_prices(None)


def cost(points: Any, backend: str) -> float:
    [found] = [c.total for c in points.costs if c.backend == backend]
    return float(found)


@pytest.mark.parametrize(
    ("stored", "sent", "expected"),
    [(10, 100, 9), (100, 1000, 92), (1000, 10_000, 921)],
    ids=["1k", "10k", "100k"],
)
def test_the_plans_own_scales_cost_what_the_plan_says(
    stored: int, sent: int, expected: float
) -> None:
    [supabase] = [
        c for c in costs.monthly(SHIPPED, stored * GB, sent * GB) if c.backend == "supabase"
    ]
    assert round(supabase.total) == expected
    assert supabase.total == pytest.approx(supabase.storage + supabase.bandwidth)


@pytest.mark.parametrize(
    ("use", "crossed"),
    [
        (costs.Use(99 * GB, 0, 400 * GB, 30), []),
        (costs.Use(101 * GB, 0, 0, 30), [pb.MOVE_REASON_STORAGE]),
        (costs.Use(1 * GB, 0, 501 * GB, 30), [pb.MOVE_REASON_BANDWIDTH]),
        (costs.Use(1 * GB, 0, 600 * GB, 30), [pb.MOVE_REASON_BANDWIDTH, pb.MOVE_REASON_COST]),
        (
            costs.Use(1 * GB, 0, 20 * GB, 1),
            [pb.MOVE_REASON_BANDWIDTH, pb.MOVE_REASON_COST],
        ),  # 600 GB in a month
    ],
)
def test_each_threshold_for_moving_is_told_when_it_is_crossed(
    use: costs.Use, crossed: list[int]
) -> None:
    answer = costs.project(SHIPPED, use, 1)
    assert [t.reason for t in answer.thresholds if t.crossed] == crossed
    assert all(
        t.crossed == (t.HasField("months_until_crossed") and not t.months_until_crossed)
        for t in answer.thresholds
    )
    assert ("Move from supabase to r2" in answer.recommendation) == bool(crossed)


def test_growth_tells_how_far_off_a_threshold_is() -> None:
    answer = costs.project(
        SHIPPED, costs.Use(stored=70 * GB, grown=5 * GB, sent=70 * GB, days=15), 24
    )
    assert answer.growth_bytes_per_month == 10 * GB and answer.measured_days == 15

    by_reason = {t.reason: t for t in answer.thresholds}
    assert by_reason[pb.MOVE_REASON_STORAGE].months_until_crossed == 4
    assert "in 4 months" in answer.recommendation
    assert [p.months_ahead for p in answer.points] == list(range(25))
    assert (answer.points[7].stored_bytes, answer.points[7].bandwidth_bytes) == (140 * GB, 280 * GB)
    assert cost(answer.points[7], "s3") == pytest.approx(140 * 0.023 + 280 * 0.09, abs=0.01)


def test_what_shrinks_is_never_less_than_nothing() -> None:
    answer = costs.project(SHIPPED, costs.Use(stored=10, grown=-(10**9), sent=0, days=1), 120)
    assert min(p.stored_bytes for p in answer.points) == 0
    assert "none will be within ten years" in answer.recommendation


async def test_the_projection_is_made_of_what_is_really_used(
    suite: Suite, caller: Callable[..., Client]
) -> None:
    admin = caller("admin")
    await storage.folded(suite)
    before = (await storage.reports(admin).ProjectCosts(pb.ProjectCostsRequest(months=1))).points[0]
    suite.sql(
        "INSERT INTO assets.storage_deltas (owner, noun, state, number, bytes, day) VALUES"
        " ('user:large', 'asset', 'ready', 1, %(gb)s * 200::bigint, current_date - 9),"
        " ('user:large', 'download', 'exact', 1, %(gb)s * 100::bigint, current_date - 5),"
        " ('user:large', 'download', 'issued', 1, %(gb)s * 100::bigint, current_date)",
        {"gb": GB},
    )
    await storage.folded(suite)

    try:
        answer = await storage.reports(admin).ProjectCosts(pb.ProjectCostsRequest(months=3))
        assert (answer.currency, answer.price_date) == (SHIPPED.currency, SHIPPED.date)
        assert answer.measured_days == 10, "from the first day on"
        assert answer.points[0].stored_bytes - before.stored_bytes == 200 * GB
        assert answer.points[0].bandwidth_bytes == pytest.approx(600 * GB, rel=0.01), (
            "200 GB in 10 days"
        )
        assert answer.growth_bytes_per_month == pytest.approx(600 * GB, rel=0.01)
        assert len(answer.points) == 4 and all(t.crossed for t in answer.thresholds)
        assert cost(answer.points[0], "r2") == pytest.approx(3, abs=0.01)
    finally:
        for table in ("storage_totals", "storage_days", "storage_places"):
            await suite.change(
                f"DELETE FROM assets.{table} WHERE owner IN ('user:large', 'deployment')"
            )


YAML = """
currency: EUR
date: 2026-11-01
backends:
  cellar: {stored_gb: 1, sent_gb: 2, fixed: 3}
moving: {backend: cellar, to: attic, stored_gb: 1, sent_gb_per_month: 1, monthly_cost: 1}
"""


def test_an_operator_brings_prices_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(YAML)
    answer = costs.project(costs.load_prices(file), costs.Use(2 * GB, 0, 0, 30), 1)
    assert (answer.currency, answer.price_date) == ("EUR", "2026-11-01")
    assert cost(answer.points[0], "cellar") == 5 and "to attic" in answer.recommendation


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("currency: EUR", "currency: euros", "currency"),
        ("fixed: 3", "fixed: -3", "fixed"),
        ("backend: cellar,", "backend: roof,", "moving.backend"),
        ("sent_gb: 2", "sentgb: 2", "sentgb"),
        ("date:", "date: [", "prices.yaml"),
    ],
)
def test_a_price_file_with_a_mistake_is_refused_by_name(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(YAML.replace(old, new))
    with pytest.raises(costs.PricesProblem, match=named):
        costs.load_prices(file)
