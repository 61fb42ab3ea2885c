"""Reads a price book from the CSV that spreadsheets write. Every line that isn't empty becomes an
offer, or an error under the line number that an editor shows."""

import csv
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.pipeline import amounts
from shared.database.ids import new_id
from shared.rpc import errors

COLUMNS = ("brand", "model", "name", "marketplace", "price", "msrp", "currency", "link", "category")
KEYS = ("brand", "model", "name", "marketplace")
MAX_TEXT = 300
MAX_LINK = 2000
MAX_KEY_BYTES = 600  # four keys and the owner together fit into a row of an index
MAX_LINES = 10_000
_MAX_SPAN = 20  # lines searched for the end of a quoted cell; cells with line breaks are refused
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?+\1*+\s*+', re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffd]")
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
ENCODINGS = {
    "utf-8": "utf-8",
    "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be",
    **{f"windows-{number}": f"cp{number}" for number in range(1250, 1259)},
    "iso-8859-1": "cp1252",
    "iso-8859-2": "iso8859-2",
    "iso-8859-15": "iso8859-15",
    "macintosh": "mac-roman",
    "ibm437": "cp437",
    "ibm850": "cp850",
    "ibm852": "cp852",
    "ibm866": "cp866",
    "shift_jis": "cp932",
    "gb18030": "gb18030",
    "big5": "cp950",
    "euc-kr": "cp949",
}
"""The encodings that spreadsheets write: each name on the web, and Python's name for it."""
_LIKELY = ("windows-1252", "windows-1250", "windows-1251", "macintosh", "shift_jis")
# Signs that people type and paste in place of one another.
_SIGNS_ALIKE = {
    **dict.fromkeys(map(ord, "‘’‛ʼ′´"), "'"),
    **dict.fromkeys(map(ord, "“”„‟″«»"), '"'),
    ord("−"): "-",
    **dict.fromkeys(map(ord, "\ufe0e\ufe0f")),
}


@dataclass(frozen=True)
class LineError:
    line: int
    column: str
    message: str


@dataclass(frozen=True)
class Book:
    """The contents of a file: its good lines as values by column, and the errors of the others."""

    entries: Sequence[Mapping[str, Any]]
    errors: Sequence[LineError]


class _Wrong(Exception):
    """Raised for a line that is refused. `column` is '' for the line as a whole. `lines` counts the
    lines of the file that are refused with it, itself included."""

    def __init__(self, column: str, message: str, lines: int = 1) -> None:
        super().__init__(column, message)
        self.column = column
        self.message = message
        self.lines = lines


def folded(text: str) -> str:
    """Returns the form in which texts are compared. It ignores case, width, composed or decomposed
    characters, runs of spaces of any kind, invisible characters, and the kind of dashes and
    quotation marks."""
    if text.isascii():
        return " ".join(text.casefold().split())
    wide = unicodedata.normalize(
        "NFKC", unicodedata.normalize("NFKD", text.translate(_SIGNS_ALIKE)).casefold()
    )
    kinds = ((character, unicodedata.category(character)) for character in wide)
    return " ".join(
        "".join("-" if kind == "Pd" else c for c, kind in kinds if kind != "Cf").split()
    )


def read_csv(data: bytes, encoding: str = "") -> Book:
    """Reads a file. Raises INVALID_ARGUMENT if the file as a whole can't be read."""
    lines = [f"{line}\n" for line in re.split("\r\n|\n|\r", _decoded(data, encoding))]
    if not lines[-1].strip("\n"):
        del lines[-1]  # nothing follows the last line's end
    at, table = _table(lines)
    if len(lines) - at > MAX_LINES:
        text = (
            f"has more than {MAX_LINES:,} lines after its header; import it in parts, without"
            " `replace`"
        )
        raise errors.invalid("csv", text)
    entries: list[dict[str, Any]] = []
    faults: list[LineError] = []
    first_seen: dict[tuple[str, ...], int] = {}
    while at < len(lines):
        line, at = at + 1, at + 1
        try:
            entry = table.entry(table.cells(lines, line - 1))
            key = (*(entry[f"{name}_key"] for name in KEYS), entry["currency"]) if entry else ()
            if entry and (earlier := first_seen.setdefault(key, line)) != line:
                raise _Wrong("", f"is the same offer as line {earlier}; keep one of them")
        except _Wrong as wrong:
            faults.append(LineError(line, wrong.column, wrong.message))
            at = line - 1 + wrong.lines
        else:
            entries += [entry] if entry else []
    return Book(entries, faults)


def _decoded(data: bytes, encoding: str) -> str:
    """Returns the file's text. A byte order mark decides the encoding, else the caller, else it is
    UTF-8. Raises INVALID_ARGUMENT."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _text(data[len(mark) :], name, f"begins with the mark of {name.upper()}")
    if encoding:
        if (name := ENCODINGS.get(encoding.casefold(), "")) == "":
            raise errors.invalid(
                "encoding", f"{encoding!r} isn't known; there are {', '.join(ENCODINGS)}"
            )
        return _text(data, name, f"isn't {encoding}")
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise errors.invalid("csv", "is a spreadsheet, not CSV; save it as CSV in UTF-8")
    if b"\0" in data[:4]:
        raise errors.invalid(
            "csv", "looks like UTF-16 without its mark; name utf-16le or utf-16be in `encoding`"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.invalid("csv", _not_utf8(data, error.start)) from None


def _text(data: bytes, codec: str, what: str) -> str:
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(codec, "ignore").count("\n") + 1
        text = (
            f"{what}, but line {line} can't be read so; save it as CSV in UTF-8, or name its"
            " encoding in `encoding`"
        )
        raise errors.invalid("csv", text) from None


def _not_utf8(data: bytes, at: int) -> str:
    """Returns the text of the error. An encoding can't be told from bytes, but a person who knows
    the words can tell: the text shows how each likely encoding reads the word in question."""
    line = len(re.findall(b"\r\n|\n|\r", data[:at])) + 1
    # Looks at no more bytes than are shown: a file may be one long word.
    begin, end = (
        re.search(rb"[^\s,;|\"]*\Z", data[max(0, at - 30) : at]),
        re.match(rb"[^\s,;|\"]*", data[at : at + 30]),
    )
    word = (begin[0] if begin else b"") + (end[0] if end else b"")
    ways: dict[str, str] = {}
    for name in _LIKELY:
        ways.setdefault(word.decode(ENCODINGS[name], "replace"), name)
    shown = [
        f"{name} if it is {read!r}" for read, name in ways.items() if not _UNPRINTABLE.search(read)
    ]
    hint = f": {', '.join(shown)}" if shown else ""
    return (
        f"isn't UTF-8 in line {line}; save it as CSV in UTF-8, or name its encoding in"
        f" `encoding`{hint}"
    )


def _table(lines: Sequence[str]) -> tuple[int, "_Table"]:
    """Returns the index of the line after the header, and the table that the header describes.
    Raises INVALID_ARGUMENT for a header that can't be used."""
    said = _SEPARATOR_LINE.fullmatch(lines[0]) if lines else None
    if said and said[1] not in _SEPARATORS:
        text = (
            f"line 1 names {said[1]!r} as the separator; there are"
            f" {', '.join(_SEPARATORS.values())}"
        )
        raise errors.invalid("csv", text)
    at = 1 if said else 0
    while at < len(lines) - 1 and not lines[at].strip():
        at += 1
    header = lines[at] if at < len(lines) else ""
    separator = said[1] if said else max(_SEPARATORS, key=lambda mark: _known_columns(header, mark))
    try:
        cells: list[str] = next(_reader([header], separator), [])
    except csv.Error as error:
        raise errors.invalid(
            "csv", f"the header in line {at + 1} can't be read as CSV: {error}"
        ) from None
    names = [folded(cell) for cell in cells]
    _check_header(names, at + 1, separator)
    return at + 1, _Table(names, separator)


def _known_columns(header: str, separator: str) -> int:
    return sum(folded(cell.strip().strip('"')) in COLUMNS for cell in header.split(separator))


def _check_header(names: Sequence[str], line: int, separator: str) -> None:
    known = f"columns are {', '.join(COLUMNS)}, separated by {_SEPARATORS[separator]}"
    for number, name in enumerate(names, start=1):
        if name and name not in COLUMNS:
            text = (
                f"the header in line {line} has the unknown column {name[:60]!r}; rename it or take"
                f" it out; {known}"
            )
            raise errors.invalid("csv", text)
        if name and name in names[: number - 1]:
            first = names.index(name) + 1
            text = (
                f"the header in line {line} names a column twice: {name!r} is column {first} and"
                f" {number}"
            )
            raise errors.invalid("csv", text)
    if (
        not {"model", "name"} & set(names)
        or not {"price", "msrp"} & set(names)
        or "currency" not in names
    ):
        text = (
            f"the header needs currency, model or name, and price or msrp in line {line}; {known}"
        )
        raise errors.invalid("csv", text)


def _reader(lines: Sequence[str], separator: str, *, strict: bool = True) -> Any:
    return csv.reader(lines, delimiter=separator, strict=strict, skipinitialspace=True)


class _Table:
    """The file's columns, in order. A column without a name is '', and its cells must be empty."""

    def __init__(self, names: Sequence[str], separator: str) -> None:
        self._names = names
        self._separator = separator
        self._width = max(number for number, name in enumerate(names, start=1) if name)

    def cells(self, lines: Sequence[str], at: int) -> list[str]:
        """Returns the cells of the line at index `at`. Raises _Wrong for a line that can't be read
        by itself.

        A cell with a line break is always refused: a quotation mark that somebody forgot to close
        makes one cell of the lines after it. If those look like lines of the table, they are read
        as such.
        """
        reader = _reader(lines[at : at + _MAX_SPAN], self._separator)
        try:
            cells: list[str] = next(reader)
        except csv.Error as error:
            raise self._unreadable(lines[at], error) from None
        used = reader.line_num
        if used > 1:
            rows = [
                line.count(self._separator) >= self._width - 1 for line in lines[at : at + used]
            ]
            text = (
                f"opens a quotation mark that is closed in line {at + used}; close it here, and"
                " take out line breaks"
            )
            raise _Wrong(
                self._open_column(lines[at]), text, 1 if rows[0] and any(rows[1:]) else used
            )
        return cells

    def entry(self, cells: Sequence[str]) -> dict[str, Any] | None:
        """Returns the offer, or None for an empty line. Raises _Wrong for the first error."""
        if not any(cell.strip() for cell in cells):
            return None
        self._check_width(cells)
        given = dict.fromkeys(COLUMNS, "")
        given |= {
            name: cell.strip() for name, cell in zip(self._names, cells, strict=False) if name
        }
        keys = {f"{name}_key": folded(given[name]) for name in KEYS}
        for name in COLUMNS:
            if problem := _problem(name, given[name], keys.get(f"{name}_key", "")):
                raise _Wrong(name, problem)
        code = _currency(given["currency"])
        prices = {name: _amount(name, given[name], code) for name in ("price", "msrp")}
        if not keys["model_key"] and not keys["name_key"]:
            raise _Wrong("", "needs a model or a name")
        if not any(prices.values()):
            raise _Wrong("", "needs a price or an msrp")
        return {**given, **prices, **keys, "currency": code, "id": new_id()}

    def _check_width(self, cells: Sequence[str]) -> None:
        mark = _SEPARATORS[self._separator]
        if len(cells) < self._width:
            text = (
                f"has {len(cells)} columns, the header {self._width}; write a {mark} for each cell"
                " that is empty"
            )
            raise _Wrong("", text)
        for number, cell in enumerate(cells, start=1):
            if not cell.strip() or (number <= len(self._names) and self._names[number - 1]):
                continue
            if number <= len(self._names):
                raise _Wrong(
                    "",
                    f"holds {cell[:40]!r} in column {number}, which has no name in the header;"
                    " name it",
                )
            text = (
                f"has {len(cells)} columns, the header {self._width}; a cell that holds a {mark}"
                " needs quotation marks"
            )
            raise _Wrong("", text)

    def _unreadable(self, line: str, error: csv.Error) -> _Wrong:
        reader = _reader([line, '"\n'], self._separator)
        try:
            next(reader)
        except csv.Error:
            if "expected after" not in str(error):
                return _Wrong("", f"can't be read as CSV: {error}")
            text = (
                "goes on after a closing quotation mark; quote the whole cell, and double quotation"
                " marks within it"
            )
            return _Wrong("", text)
        text = (
            "opens a quotation mark that isn't closed; close it, or double it within a cell in"
            " quotation marks"
        )
        return _Wrong(self._open_column(line), text)

    def _open_column(self, line: str) -> str:
        """Returns the column of the cell that is still open at the line's end."""
        number = len(next(_reader([line], self._separator, strict=False)))
        return self._names[number - 1] if number <= len(self._names) else ""


def _problem(column: str, text: str, key: str) -> str:
    """Returns what is wrong with a text, or ''. `key`: the folded text, if lookups use the
    column."""
    limit = MAX_LINK if column == "link" else MAX_TEXT
    if len(text) > limit:
        return f"has {len(text)} characters, at most {limit} are read"
    if (size := len(key.encode())) > MAX_KEY_BYTES:
        return f"has {size} bytes in UTF-8, at most {MAX_KEY_BYTES} are read"
    if "\ufffd" in text:
        return (
            f"holds {text[:40]!r}, where a character was lost when the file was saved; write it"
            " anew"
        )
    if _UNPRINTABLE.search(text):
        return f"holds a control character: {text[:40]!r}; take it out"
    if column == "link" and text and not re.match("https?://", text):
        return "must begin with https:// or http://"
    return ""


def _currency(text: str) -> str:
    try:
        return amounts.currency(text)
    except amounts.Unreadable as problem:
        raise _Wrong("currency", str(problem)) from None


def _amount(column: str, text: str, code: str) -> float | None:
    try:
        return amounts.amount(text, code) if text else None
    except amounts.Unreadable as problem:
        raise _Wrong(column, str(problem)) from None
