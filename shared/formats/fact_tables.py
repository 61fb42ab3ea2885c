"""Reads the values of facts strictly: each key of a table is taken once, by its kind, and an error
names the field."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from shared.formats import figures

MAX_ITEMS = 500
MAX_LINE = 300
MAX_TEXT = 5_000
MAX_NUMBER = 1e7
MAX_MONEY = 1e8  # in some currencies a coat costs tens of millions

VIEWS = ("front", "back", "side")
LENGTH_UNITS = {"mm": 0.1, "cm": 1.0, "m": 100.0, "in": 2.54}
"""Centimetres in one unit."""

T = TypeVar("T")


class FactsError(ValueError):
    """A fact is invalid. `path` is the field (`dimensions[1].value`), `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        # Exception gets both arguments, because pickle passes its arguments to __init__ in another
        # process.
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class Table:
    """A mapping that is being read: each key is taken once, and `end` refuses keys that are left.

    A method takes a key and returns its value, as the kind that it is named for; None or an empty
    tuple for an absent one, which `need` and `need_table` refuse. All raise FactsError.
    """

    def __init__(self, path: str, value: object) -> None:
        self.path = path
        if not isinstance(value, Mapping):
            raise FactsError(path, f"must be a table of keys and values, not {_kind(value)}")
        self._left: dict[object, object] = dict(value)
        self._known: list[str] = []

    def end(self) -> None:
        for key in self._left:
            known = ", ".join(sorted(self._known))
            raise FactsError(self._at(key), f"unknown key; known here: {known}")

    def need(self, take: Callable[[str], T | None], key: str) -> T:
        value = take(key)
        return self._missing(key) if value is None else value

    def need_table(self, key: str, build: Callable[["Table"], T]) -> T:
        value = self.table(key, build)
        return self._missing(key) if value is None else value

    def table(self, key: str, build: Callable[["Table"], T]) -> T | None:
        value = self._take(key)
        if value is None:
            return None
        row = Table(self._at(key), value)
        built = build(row)
        row.end()
        return built

    def rows(self, key: str, build: Callable[["Table"], T]) -> tuple[T, ...]:
        built = []
        for index, value in enumerate(self._list(key)):
            row = Table(f"{self._at(key)}[{index}]", value)
            built.append(build(row))
            row.end()
        return tuple(built)

    def lines(self, key: str) -> tuple[str, ...]:
        return tuple(
            _text(f"{self._at(key)}[{index}]", value, MAX_LINE)
            for index, value in enumerate(self._list(key))
        )

    def line(self, key: str) -> str | None:
        value = self._take(key)
        return None if value is None else _text(self._at(key), value, MAX_LINE)

    def text(self, key: str) -> str | None:
        value = self._take(key)
        return None if value is None else _text(self._at(key), value, MAX_TEXT)

    def view(self, key: str) -> str | None:
        return self._one_of(key, VIEWS)

    def length_unit(self, key: str) -> str | None:
        return self._one_of(key, tuple(LENGTH_UNITS))

    def currency(self, key: str) -> str | None:
        value = self.line(key)
        if value is not None and not re.fullmatch("[A-Z]{3}", value):
            raise FactsError(
                self._at(key), f"{value!r} is not a currency code of three capitals, such as EUR"
            )
        return value

    def money(self, key: str) -> float | None:
        return self.positive(key, MAX_MONEY)

    def positive(self, key: str, most: float = MAX_NUMBER) -> float | None:
        value = self._number(key, most)
        if value is not None and value <= 0:
            raise FactsError(self._at(key), f"{figures.number(value)} must be greater than 0")
        return value

    def not_negative(self, key: str) -> float | None:
        value = self._number(key)
        if value is not None and value < 0:
            raise FactsError(self._at(key), f"{figures.number(value)} must not be negative")
        return value

    def fraction(self, key: str) -> float | None:
        value = self._number(key)
        if value is not None and not 0 <= value <= 1:
            raise FactsError(
                self._at(key), f"{figures.number(value)} is not a fraction of the picture (0..1)"
            )
        return value

    def _number(self, key: str, most: float = MAX_NUMBER) -> float | None:
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise FactsError(self._at(key), f"must be a number, not {_kind(value)}")
        # The comparison comes before the conversion: a float can't hold an integer of a thousand
        # digits.
        if not -most <= value <= most:
            raise FactsError(self._at(key), f"must be a finite number of at most {most:,.0f}")
        return float(value)

    def _one_of(self, key: str, allowed: Sequence[str]) -> str | None:
        value = self.line(key)
        if value is not None and value not in allowed:
            raise FactsError(self._at(key), f"{value!r} is not one of {', '.join(allowed)}")
        return value

    def _list(self, key: str) -> Sequence[object]:
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)):
            raise FactsError(self._at(key), f"must be a list, not {_kind(value)}")
        if len(value) > MAX_ITEMS:
            raise FactsError(
                self._at(key), f"has {len(value)} entries, at most {MAX_ITEMS} are read"
            )
        return value

    def _take(self, key: str) -> object:
        self._known.append(key)
        return self._left.pop(key, None)

    def _missing(self, key: str) -> NoReturn:
        raise FactsError(self._at(key), "is needed")

    def _at(self, key: object) -> str:
        name = _one_line(key)
        return f"{self.path}.{name}" if self.path else name


def _text(path: str, value: object, limit: int) -> str:
    if not isinstance(value, str):
        raise FactsError(path, f"must be text, not {_kind(value)}; put it in quotes")
    text = value.strip()
    if not text:
        raise FactsError(path, "is empty; leave the key out when it is not known")
    if len(text) > limit:
        raise FactsError(path, f"has {len(text)} characters, at most {limit} are read")
    if unprintable := re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text):
        raise FactsError(path, f"holds the control character U+{ord(unprintable[0]):04X}")
    if limit == MAX_LINE and "\n" in text:
        raise FactsError(path, "must be one line")
    return text


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    names = {
        str: "text",
        bool: "yes/no",
        int: "a number",
        float: "a number",
        list: "a list",
        type(None): "nothing",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:200]
