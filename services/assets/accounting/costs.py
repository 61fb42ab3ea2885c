"""Costs of storage: prices as data, a projection from measured use, and whether to move."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from atelier.assets.v1 import storage_report_pb2 as pb
from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.formats import figures

GIGABYTE = 1_000_000_000
DEFAULT_MONTHS = 12
_FARTHEST_MONTHS = 120
_DAYS_OF_MONTH = 30
_SHIPPED = Path(__file__).with_name("prices.yaml")


class Price(BaseModel):
    model_config = ConfigDict(extra="forbid")
    stored_gb: float = Field(ge=0)
    sent_gb: float = Field(ge=0)
    fixed: float = Field(ge=0)


class Moving(BaseModel):
    model_config = ConfigDict(extra="forbid")
    backend: str
    to: str
    stored_gb: float = Field(gt=0)
    sent_gb_per_month: float = Field(gt=0)
    monthly_cost: float = Field(gt=0)


class Prices(BaseModel):
    """A price file; services/assets/accounting/prices.yaml explains each key."""

    model_config = ConfigDict(extra="forbid")
    currency: str = Field(pattern="^[A-Z]{3}$")
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    backends: dict[str, Price] = Field(min_length=1)
    moving: Moving

    @model_validator(mode="after")
    def _known(self) -> "Prices":
        if self.moving.backend not in self.backends:
            raise ValueError(f"moving.backend: {self.moving.backend!r} is not among the backends")
        return self


class PricesProblem(Exception):
    """The price file can't be used. The text tells the operator which file, and what is wrong."""


@cache
def load_prices(path: Path | None) -> Prices:
    """Reads a price file, or the shipped one for None. Raises PricesProblem."""
    file = path or _SHIPPED
    try:
        # The BaseLoader keeps every value as text: others would parse the date.
        return Prices.model_validate(yaml.load(file.read_text(), yaml.BaseLoader))  # noqa: S506 (makes plain text only)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PricesProblem(f"{file}: {error}") from None


@dataclass(frozen=True)
class Use:
    """The measured use. `stored`: bytes stored now; `grown`: by how many they grew in the last
    `days` days; `sent`: bytes sent in those days."""

    stored: int
    grown: int
    sent: int
    days: int

    @property
    def growth(self) -> float:
        """The growth in bytes per month of 30 days."""
        return self.grown / self.days * _DAYS_OF_MONTH

    def ahead(self, months: int) -> tuple[int, int]:
        """Returns the bytes stored after so many months, and the bytes sent in that month, which
        grow in proportion to them."""
        stored = max(0.0, self.stored + self.growth * months)
        sent = self.sent / self.days * _DAYS_OF_MONTH
        return round(stored), round(sent * stored / self.stored) if self.stored else round(sent)


def monthly(prices: Prices, stored: int, sent: int) -> list[pb.MonthlyCost]:
    made = []
    for name, price in prices.backends.items():
        storage, bandwidth = stored / GIGABYTE * price.stored_gb, sent / GIGABYTE * price.sent_gb
        made.append(
            pb.MonthlyCost(
                backend=name,
                storage=round(storage, 2),
                bandwidth=round(bandwidth, 2),
                total=round(storage + bandwidth + price.fixed, 2),
            )
        )
    return made


def _figures(prices: Prices, stored: int, sent: int) -> list[tuple[pb.MoveReason, float, float]]:
    """Returns (reason, value, threshold) of each threshold for moving."""
    moving = prices.moving
    [cost] = [c.total for c in monthly(prices, stored, sent) if c.backend == moving.backend]
    return [
        (pb.MOVE_REASON_STORAGE, stored, moving.stored_gb * GIGABYTE),
        (pb.MOVE_REASON_BANDWIDTH, sent, moving.sent_gb_per_month * GIGABYTE),
        (pb.MOVE_REASON_COST, cost, moving.monthly_cost),
    ]


def thresholds(prices: Prices, use: Use) -> list[pb.MoveThreshold]:
    made = [
        pb.MoveThreshold(reason=reason, value=value, threshold=threshold, crossed=value > threshold)
        for reason, value, threshold in _figures(prices, *use.ahead(0))
    ]
    for months in range(_FARTHEST_MONTHS + 1):
        for one, (_, value, threshold) in zip(
            made, _figures(prices, *use.ahead(months)), strict=True
        ):
            if value > threshold and not one.HasField("months_until_crossed"):
                one.months_until_crossed = months
    return made


def recommendation(prices: Prices, crossed: Sequence[pb.MoveThreshold]) -> str:
    moving = prices.moving
    reached = {one.reason: one for one in crossed if one.crossed}
    if not reached:
        soonest = min(
            (t.months_until_crossed for t in crossed if t.HasField("months_until_crossed")),
            default=None,
        )
        when = (
            "none will be within ten years"
            if soonest is None
            else f"one will be in {soonest} months"
        )
        return (
            f"No threshold for moving from {moving.backend} to {moving.to} is crossed; at this"
            f" growth {when}."
        )
    stored, sent, cost = map(
        figures.number, (moving.stored_gb, moving.sent_gb_per_month, moving.monthly_cost)
    )
    names = {
        pb.MOVE_REASON_STORAGE: f"more than {stored} GB are stored",
        pb.MOVE_REASON_BANDWIDTH: f"more than {sent} GB a month are sent",
        pb.MOVE_REASON_COST: (
            f"{moving.backend} would cost more than {cost} {prices.currency} a month"
        ),
    }
    why = ", ".join(names[reason] for reason in reached)
    return (
        f"Move from {moving.backend} to {moving.to}: {why}. Take s3 instead if you need life-cycle"
        " rules, versioning or replication, or are on AWS already. `atelier storage copy` moves"
        " the objects while the suite runs."
    )


def project(prices: Prices, use: Use, months: int) -> pb.ProjectCostsResponse:
    points = []
    for ahead in range((months or DEFAULT_MONTHS) + 1):
        stored, sent = use.ahead(ahead)
        costs = monthly(prices, stored, sent)
        points.append(
            pb.CostPoint(months_ahead=ahead, stored_bytes=stored, bandwidth_bytes=sent, costs=costs)
        )
    found = thresholds(prices, use)
    return pb.ProjectCostsResponse(
        currency=prices.currency,
        price_date=prices.date,
        growth_bytes_per_month=round(use.growth),
        measured_days=use.days,
        points=points,
        thresholds=found,
        recommendation=recommendation(prices, found),
    )
