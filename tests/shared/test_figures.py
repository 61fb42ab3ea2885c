"""Numbers are printed as somebody wrote them, whatever a double made of them."""

from decimal import Decimal

import pytest

from shared.formats.facts import Point, PointOfMeasure, Scale
from shared.formats.figures import Number, money, number
from shared.formats.lengths import by_scale


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (72.0, "72"),
        (0.1 + 0.2, "0.3"),
        (0.1 + 0.7, "0.8"),
        (1.1 * 3, "3.3"),
        (1e-7, "0.0000001"),
        (1e7, "10000000"),
        (-0.0, "0"),
        (-2.5, "-2.5"),
        (12, "12"),
        (1234567.123456, "1234567.123456"),
        (Decimal("16.0"), "16.0"),
        (Decimal("1E+3"), "1000"),
        ("0.30", "0.30"),
    ],
)
def test_a_number_has_no_exponent_and_no_digits_of_the_double(value: Number, shown: str) -> None:
    assert number(value) == shown


def test_the_smallest_number_is_not_nothing() -> None:
    assert number(5e-324).startswith("0.000") and number(5e-324).rstrip("0").endswith(
        "494065645841247"
    )


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        ("1234.5", "EUR", "1,234.50"),
        ("1234.567", "EUR", "1,234.567"),
        ("0", "EUR", "0.00"),
        ("5", "JPY", "5"),
        ("5.5", "JPY", "5.5"),
        ("1E+3", "KWD", "1,000.000"),
        ("-1234567", "USD", "\u22121,234,567.00"),
        ("-0", "EUR", "0.00"),
        (129.9, "EUR", "129.90"),
        (0.1 + 0.2, "EUR", "0.30"),
        (5000.0, "JPY", "5,000"),
    ],
)
def test_money_is_exact_with_at_least_the_usual_digits(
    amount: Number, currency: str, shown: str
) -> None:
    assert money(amount, currency, grouped=True) == shown
    assert money(amount, currency, grouped=False) == shown.replace(",", "")


@pytest.mark.parametrize(
    ("unit", "length"), [("mm", 523.0), ("cm", 52.3), ("m", 0.523), ("in", 20.59)]
)
def test_a_measured_length_is_as_fine_in_every_unit(unit: str, length: float) -> None:
    scale = Scale("front", 1.0, "m", Point(0.0, 0.0), Point(1.0, 0.0))
    point = PointOfMeasure("A", "chest", unit=unit, start=Point(0.0, 0.5), end=Point(0.523, 0.5))
    assert by_scale(point, scale, (1000, 1000)) == length
