"""Formats numbers for print and for sentences: no exponent, no minus zero, no rounding noise of
floats."""

from decimal import Context, Decimal

Number = int | float | Decimal | str

_EXACT = Context(prec=400)  # more digits than any float or any sum of a thousand amounts
# A double keeps every decimal of up to this many digits. Further digits are rounding noise, as in
# 0.1 + 0.2.
_DIGITS_OF_DOUBLE = 15
_NO_MINOR_UNIT = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_MINOR_DIGITS = {
    **dict.fromkeys(_NO_MINOR_UNIT.split(), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}


def number(value: Number) -> str:
    """Formats a number without a unit: 72.0 is `72`, 0.1 + 0.2 is `0.3`, 1e-7 is `0.0000001`.

    A float is rounded to 15 digits and loses trailing zeros. A Decimal or a text was written by
    somebody and keeps its zeros.
    """
    if isinstance(value, str):
        return value
    exact = decimal_of(value)
    return format(exact if exact else abs(exact), "f")  # abs: there is no minus zero


def money(amount: Number, currency: str, *, grouped: bool) -> str:
    """Formats an amount with at least the usual number of decimals of its currency (ISO 4217), and
    with all that were given: 129.9 EUR is `129.90`, 5 JPY is `5`, 1.2345 EUR is `1.2345`.

    `grouped` separates thousands by commas, for columns that are added up: `1,234.50`. Figures for
    a factory are not grouped, since half of the world reads that comma as a decimal point.
    """
    exact = _EXACT.plus(decimal_of(amount)).normalize(_EXACT)  # plus: there is no minus zero
    after = max(_MINOR_DIGITS.get(currency, 2), -int(exact.as_tuple().exponent))
    return f"{exact:{',' if grouped else ''}.{after}f}".replace("-", "\u2212")


def decimal_of(value: Number) -> Decimal:
    """Returns the decimal that a number stands for; a float gets no trailing zeros."""
    if isinstance(value, float):
        return Decimal(format(value, f".{_DIGITS_OF_DOUBLE}g")).normalize(_EXACT)
    return Decimal(value)
