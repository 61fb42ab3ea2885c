"""Parses amounts of money as people and spreadsheets write them. Text that can be read in two ways
is refused, never guessed."""

import re

MOST = 99_999_999.9999
_GROUPED = r"[1-9]\d{0,2}(?:(?P<group>[., '])\d{3})(?:(?P=group)\d{3})*"
_NUMBER = re.compile(rf"(?P<whole>\d+|{_GROUPED})(?:(?P<mark>[.,])(?P<part>\d{{1,4}}))?", re.ASCII)
_TWO_WAYS = re.compile(r"([1-9]\d{0,2})[.,](\d{3})", re.ASCII)
_WITH_CURRENCY = re.compile(
    r"(?P<before>[^\d\s+-]*)\s*(?P<number>\d(?:.*\d)?)\s*(?P<after>[^\d\s]*)", re.ASCII
)
# Maps full-width digits and marks to ASCII, ’ (between thousands) to ', and the full-width yen and
# pound signs to the usual ones.
_PLAIN = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {
    ord("’"): "'",
    ord("￥"): "¥",
    ord("￡"): "£",
}
_DOLLARS = ("USD", "CAD", "AUD", "NZD", "SGD", "HKD", "TWD", "MXN", "ARS", "CLP", "COP")
_SIGNS = {
    "€": ("EUR",),
    "£": ("GBP",),
    "₹": ("INR",),
    "₩": ("KRW",),
    "₺": ("TRY",),
    "₽": ("RUB",),
    "₴": ("UAH",),
    "₪": ("ILS",),
    "₫": ("VND",),
    "฿": ("THB",),
    "₱": ("PHP",),
    "zł": ("PLN",),
    "kč": ("CZK",),
    "ft": ("HUF",),
    "r$": ("BRL",),
    "us$": ("USD",),
    "$": _DOLLARS,
    "¥": ("JPY", "CNY"),
    "kr": ("SEK", "NOK", "DKK", "ISK"),
    "kr.": ("SEK", "NOK", "DKK", "ISK"),
    "fr.": ("CHF",),
}


class Unreadable(ValueError):
    """Raised for text that can't be read. The message says what is wrong and what to write
    instead."""


def currency(text: str) -> str:
    """Returns the currency code that a text names: `EUR`, `eur` or `€`. Raises Unreadable."""
    codes = _codes(text)
    if len(codes) == 1:
        return codes[0]
    if codes:
        raise Unreadable(
            f"{text!r} stands for several currencies; write the code, such as {codes[0]}"
        )
    if not text:
        raise Unreadable("is empty; write a currency code of three letters, such as EUR")
    raise Unreadable(f"{text[:40]!r} is not a currency code of three letters, such as EUR")


def amount(text: str, code: str) -> float:
    """Returns the amount that a text states in the currency `code`, which the text may repeat:
    `1.299,90 €` is 1299.9.

    A comma or a point is read as the decimal mark only where that is beyond doubt. Raises
    Unreadable.
    """
    plain = text.translate(_PLAIN)
    found = _WITH_CURRENCY.fullmatch(plain.strip())
    if not found:
        raise Unreadable(f"{text[:40]!r} is not an amount: more than 0, such as 129.90")
    for sign in (found["before"], found["after"]):
        if sign and code not in _codes(sign):
            hint = f"write it such as 129.90, or correct the line's currency, which is {code}"
            raise Unreadable(f"{text[:40]!r} is not an amount in {code}; {hint}")
    number = re.sub(r"\s", " ", found["number"])
    if doubt := _TWO_WAYS.fullmatch(number):
        whole, part = doubt.groups()
        raise Unreadable(
            f"{text[:40]!r} can be read in two ways; write {whole}{part}.00 or {whole}.{part}0"
        )
    match = _NUMBER.fullmatch(number)
    if not match or (match["mark"] and match["mark"] == match["group"]):
        raise Unreadable(
            f"{text[:40]!r} is not an amount: more than 0, at most four decimals, such as 129.90"
        )
    value = float(f"{re.sub('[^0-9]', '', match['whole'])}.{match['part'] or 0}")
    if not 0 < value <= MOST:
        raise Unreadable(f"{text[:40]!r} is not an amount of more than 0 and at most {MOST:,.4f}")
    return value


def _codes(text: str) -> tuple[str, ...]:
    """Returns the currencies that a code or a sign may stand for."""
    plain = text.translate(_PLAIN).strip().casefold()
    return (plain.upper(),) if re.fullmatch("[a-z]{3}", plain) else _SIGNS.get(plain, ())
