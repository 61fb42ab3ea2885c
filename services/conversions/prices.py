"""The price table: what a job costs its owner in credits, and what one call costs the operator.

The table is data (prices.yaml, or the operator's own file). `Prices.quote` is pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from services.conversions import rules

Day = date  # a table has a field `date`
MICROS = 1_000_000
LOCAL = "local"
OUTSIDE = "outside"  # stands for outside workers
_SHIPPED = Path(__file__).with_name("prices.yaml")
# What a line may name, the strongest first.
_NAMED = ("model", "task", "kind", "resolution", "quality")
_MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Priced:
    """What the price of a job depends on, besides the provider. `references`: the pictures that go
    into it."""

    kind: str
    task: str = ""
    resolution: str = ""
    quality: str = ""
    references: int = 0

    @property
    def model_task(self) -> str:
        """What a model is asked for, one of rules.TASKS."""
        return f"{self.kind}.{self.task}" if self.task else self.kind

    @property
    def name(self) -> str:
        """The task as the ledger names it."""
        return self.task or self.kind


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a job that `provider` runs. `cost_micros`: the estimated cost of one call, in
    millionths of the table's currency; `source` says where it is from."""

    provider: str
    model: str
    credits: int
    cost_micros: int
    source: str
    valid_from: date


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    valid_from: date = Field(alias="from")
    provider: str = Field(min_length=1, max_length=100)
    model: str = Field("", max_length=200)
    kind: str = Field("", pattern="^(conversion|generation|analysis)?$")
    task: str = Field("", max_length=50)
    resolution: str = Field("", max_length=20)
    quality: str = Field("", max_length=20)
    credits: int | None = Field(None, ge=0, le=1_000_000)
    cost: Decimal | None = Field(None, ge=0, le=10_000, decimal_places=6)
    reference_cost: Decimal = Field(Decimal(0), ge=0, le=10_000, decimal_places=6)
    source: str = Field("", max_length=300)

    @model_validator(mode="after")
    def _says_something(self) -> "_Line":
        if self.credits is None and self.cost is None:
            raise ValueError("a line states credits, or cost, or both")
        return self

    def fits(self, wanted: Mapping[str, str], day: date) -> bool:
        named = ("provider", *_NAMED)
        return self.valid_from <= day and all(
            getattr(self, name) in ("", wanted[name]) for name in named
        )

    @property
    def rank(self) -> tuple[Any, ...]:
        return (*(getattr(self, name) != "" for name in _NAMED), self.valid_from)


class Prices(BaseModel):
    """A price table; services/conversions/prices.yaml explains each key."""

    model_config = ConfigDict(extra="forbid")
    currency: str = Field(pattern="^[A-Z]{3}$")
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    lines: list[_Line] = Field(min_length=1)

    _known: dict[tuple[Priced, str, str, Day], Price] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _has_a_price_for_everything(self) -> "Prices":
        for priced in (
            Priced("conversion"),
            *(Priced("generation", task) for task in rules.NEEDED),
            *(Priced("analysis", task) for task in rules.ANALYSIS_KEYS),
        ):
            if self._credits(LOCAL, "", priced, Day.max) is None:
                job = f"{priced.kind} {priced.task}".rstrip()
                raise ValueError(f"lines: none states the credits of provider {LOCAL} for {job}")
        return self

    def quote(self, priced: Priced, provider: str, model: str, day: Day) -> Price:
        """Returns the price of a job that was created on `day` and that `provider` runs with
        `model`."""
        key = (priced, provider, model, day)
        price = self._known.get(key)
        if price is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            price = self._known[key] = self._price(*key)
        return price

    def of_outside(self, priced: Priced, day: Day) -> Price | None:
        """Returns the price of a job that was created on `day` and that an outside worker runs;
        None if the table states none."""
        line = self._credits(OUTSIDE, "", priced, day)
        if line is None or line.credits is None:
            return None
        return Price(OUTSIDE, "", line.credits, 0, "", line.valid_from)

    def _price(self, priced: Priced, provider: str, model: str, day: Day) -> Price:
        line = (
            self._credits(provider, model, priced, day)
            or self._credits(LOCAL, "", priced, day)
            # The job is older than the table.
            or self._credits(LOCAL, "", priced, Day.max)
        )
        assert line is not None and line.credits is not None  # the table was checked
        cost = self._best(provider, model, priced, day, "cost")
        micros = Decimal(0)
        if cost is not None and cost.cost is not None:
            micros = (cost.cost + priced.references * cost.reference_cost) * MICROS
        return Price(
            provider,
            model,
            line.credits,
            int(micros),
            cost.source if cost else "",
            line.valid_from,
        )

    def _credits(self, provider: str, model: str, priced: Priced, day: Day) -> _Line | None:
        return self._best(provider, model, priced, day, "credits")

    def _best(
        self, provider: str, model: str, priced: Priced, day: Day, states: str
    ) -> _Line | None:
        """Returns the fitting line that names the most and states the figure, or None."""
        wanted = {
            "provider": provider,
            "model": model,
            "kind": priced.kind,
            "task": priced.task,
            "resolution": priced.resolution,
            "quality": priced.quality,
        }
        fitting: Sequence[_Line] = [
            line
            for line in self.lines
            if getattr(line, states) is not None and line.fits(wanted, day)
        ]
        return max(fitting, key=lambda line: line.rank, default=None)


class PricesProblem(Exception):
    """The price table can't be used. The text tells the operator which file, and what is wrong."""


@cache
def load_prices(path: Path | None) -> Prices:
    """Reads a price table, or the shipped one for None. Raises PricesProblem."""
    file = path or _SHIPPED
    try:
        # The BaseLoader keeps every value as text: others would read a cost as a binary fraction.
        return Prices.model_validate(yaml.load(file.read_text(), yaml.BaseLoader))  # noqa: S506 (makes plain text only)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PricesProblem(f"{file}: {error}") from None
