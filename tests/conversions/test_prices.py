"""The price table: which line holds, what is refused in a file, and what the shipped one says."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from services.conversions import prices, rules
from services.conversions.prices import Priced, Prices, load_prices

SHIPPED = load_prices(None)
TODAY = date(2026, 11, 30)
IMAGE = Priced("generation", "image", "1K", "standard")
LOCAL = """
currency: EUR
date: 2026-11-30
lines:
  - {from: 2025-01-01, provider: local, credits: 2}
"""


def table(tmp_path: Path, lines: str, head: str = LOCAL) -> Prices:
    file = tmp_path / "prices.yaml"
    file.write_text(head + lines)
    return load_prices(file)


@pytest.mark.parametrize(
    ("priced", "credits"),
    [
        (Priced("conversion"), 2),
        (IMAGE, 3),
        (Priced("generation", "closeup"), 1),
        (Priced("generation", "sketch"), 1),
        *((Priced("analysis", task), 1) for task in rules.ANALYSIS_KEYS),
    ],
    ids=lambda value: value.name if isinstance(value, Priced) else str(value),
)
def test_the_shipped_table_prices_every_task_of_local_as_documented(
    priced: Priced, credits: int
) -> None:
    price = SHIPPED.quote(priced, "local", "", TODAY)

    assert (price.credits, price.cost_micros, price.source) == (credits, 0, "")


@pytest.mark.parametrize("provider", ["gemini", "openai", "fal", "fashn", "replicate"])
def test_every_cost_of_the_shipped_table_names_its_source(provider: str) -> None:
    lines = [line for line in SHIPPED.lines if line.provider == provider]

    assert any(line.cost is not None for line in lines)
    assert [line for line in lines if line.cost is not None and not line.source] == []
    assert all(line.valid_from <= TODAY for line in lines)


def test_the_line_that_names_more_wins_and_model_before_task_before_quality(
    tmp_path: Path,
) -> None:
    made = table(
        tmp_path,
        """
  - {from: 2026-01-01, provider: p, credits: 10}
  - {from: 2026-01-01, provider: p, kind: generation, quality: high, credits: 11}
  - {from: 2026-01-01, provider: p, kind: generation, task: image, credits: 12}
  - {from: 2026-01-01, provider: p, kind: generation, task: image, quality: high, credits: 13}
  - {from: 2026-01-01, provider: p, model: m, credits: 14}
""",
    )
    high = Priced("generation", "image", "1K", "high")

    def credits(priced: Priced, model: str = "") -> int:
        return made.quote(priced, "p", model, TODAY).credits

    assert credits(Priced("conversion")) == 10
    assert credits(Priced("generation", "sketch", "", "high")) == 11
    assert credits(IMAGE) == 12
    assert credits(high) == 13
    assert credits(high, "m") == 14
    assert credits(high, "another") == 13  # an unknown model has its provider's price


def test_an_unknown_provider_costs_as_many_credits_as_local_and_nobody_knows_its_cost() -> None:
    price = SHIPPED.quote(IMAGE, "nobody", "m", TODAY)

    assert (price.credits, price.cost_micros, price.source) == (3, 0, "")


def test_a_price_holds_from_its_day_on(tmp_path: Path) -> None:
    made = table(
        tmp_path,
        """
  - {from: 2026-03-01, provider: p, credits: 5}
  - {from: 2026-06-01, provider: p, credits: 7}
""",
    )

    on = {
        day: made.quote(IMAGE, "p", "", date.fromisoformat(day))
        for day in ("2024-01-01", "2026-02-28", "2026-03-01", "2026-05-31", "2026-06-01")
    }

    # Before any line of its own a provider costs what local costs; a job from before the table
    # costs what the table says.
    assert [price.credits for price in on.values()] == [2, 2, 5, 5, 7]
    assert on["2026-05-31"].valid_from == date(2026, 3, 1)


def test_costs_are_exact_and_grow_with_the_pictures(tmp_path: Path) -> None:
    made = table(
        tmp_path,
        "  - {from: 2026-01-01, provider: p, cost: 0.0336, reference_cost: 0.000001, source: s}\n",
    )
    priced = Priced("generation", "image", references=3)

    price = made.quote(priced, "p", "", TODAY)

    assert price.cost_micros == 33_603
    assert made.lines[-1].cost == Decimal("0.0336")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("  - {from: 2026-01-01, provider: p}\n", "states credits, or cost"),
        ("  - {from: 2026-01-01, provider: p, credits: -1}\n", "greater than or equal to 0"),
        ("  - {from: 2026-01-01, provider: p, credits: 1.5}\n", "credits"),
        ("  - {from: yesterday, provider: p, credits: 1}\n", "from"),
        ("  - {from: 2026-01-01, provider: p, kind: video, credits: 1}\n", "kind"),
        ("  - {from: 2026-01-01, provider: p, prize: 1}\n", "prize"),
        ("  - {from: 2026-01-01, provider: p, cost: 0.0000001}\n", "cost"),
        ("  - {from: 2026-01-01", "prices.yaml"),
    ],
)
def test_a_wrong_line_is_refused_by_the_name_of_what_is_wrong(
    tmp_path: Path, lines: str, said: str
) -> None:
    with pytest.raises(prices.PricesProblem, match=said) as problem:
        table(tmp_path, lines)

    assert "prices.yaml" in str(problem.value)


def test_a_table_without_a_price_for_every_task_of_local_is_refused(tmp_path: Path) -> None:
    head = LOCAL.replace("provider: local", "provider: local, kind: conversion")

    with pytest.raises(prices.PricesProblem, match="provider local for generation"):
        table(tmp_path, "", head)


def test_what_is_set_aside_is_enough_for_the_dearest_provider_within_the_limit() -> None:
    assert rules.credits_to_set_aside([3, 5, 1], None) == 5
    assert rules.credits_to_set_aside([3, 5, 1], 4) == 3
    assert rules.credits_to_set_aside([3, 5], 2) == 3
    assert rules.affordable(5, 5) and not rules.affordable(6, 5) and rules.affordable(6, None)
