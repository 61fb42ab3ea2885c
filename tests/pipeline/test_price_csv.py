"""Price books as spreadsheets write them: each line is an offer, or an error with its place and the
next step."""

import unicodedata
from contextlib import suppress

import pytest

from services.pipeline.price_csv import Book, folded, read_csv
from shared.rpc.errors import DomainError

HEADER = "model,name,marketplace,price,currency\n"


def errors(book: Book) -> list[tuple[int, str]]:
    return [(fault.line, fault.column) for fault in book.errors]


def models(book: Book) -> list[str]:
    return [entry["model"] for entry in book.entries]


def priced(cell: str, code: str = "EUR") -> Book:
    return read_csv(f"model;price;currency\nA1;{cell};{code}\n".encode())


@pytest.mark.parametrize(
    "csv",
    [
        "model,name,price,currency\nA1,Coat,129.90,EUR\n",
        "model;name;price;currency\nA1;Coat;129,90;EUR\n",
        "model\tname\tprice\tcurrency\nA1\tCoat\t129,90\tEUR\n",
        '"model"; "name"; "price"; "currency"\n"A1"; "Coat"; "129,90"; "EUR"\n',
        "model|name|price|currency\nA1|Coat|129.90|EUR\n",
        "sep=,\nmodel,name,price,currency\nA1,Coat,129.90,EUR\n",
        '\ufeff"SEP=;"\r\nmodel;name;price;currency\r\nA1;Coat;129,90 €;EUR\r\n',
        "sep=\t\nmodel\tname\tprice\tcurrency\nA1\tCoat\t129,90\tEUR\n",
        "model,name,price,currency,\nA1,Coat,129.90,EUR,\n",
        "model,name,,price,currency,,\nA1,Coat,,129.90,EUR\n",
        'model,name,price,currency\nA1,Coat,"129,90",EUR,,,\n',
        "model,name,price,currency\rA1,Coat,129.90,EUR\r",
        "\n\nmodel,name,price,currency\n\n,,,\n \u00a0,,,\nA1,Coat,129.90,€",
        ' Model , "NAME",\u00a0Price,Ｃｕｒｒｅｎｃｙ\n A1 , "Coat",129.90 ,eur\n',
    ],
)
def test_what_spreadsheets_write_is_read(csv: str) -> None:
    book = read_csv(csv.encode())
    assert not book.errors
    assert [(e["model"], e["name"], e["price"], e["currency"]) for e in book.entries] == [
        ("A1", "Coat", 129.9, "EUR")
    ]


def test_a_quotation_mark_that_is_not_closed_costs_its_own_line_only() -> None:
    lines = [f"M{n},Coat {n},Shop,{10 + n}.00,EUR\n" for n in range(500)]
    lines[9] = 'M9,"Coat 9,Shop,19.00,EUR\n'
    book = read_csv((HEADER + "".join(lines)).encode())
    assert errors(book) == [(11, "name")] and "isn't closed" in book.errors[0].message
    assert models(book) == [f"M{n}" for n in range(500) if n != 9]


@pytest.mark.parametrize(
    ("lines", "faults", "read"),
    [
        # Another cell's mark closes the quotation: the line after it is still an offer.
        (
            ['M1,"Coat,Shop,1,EUR', 'M2,Screen 24",Shop,2,EUR', "M3,Coat,Shop,3,EUR"],
            [(2, "name")],
            ["M2", "M3"],
        ),
        (['M1,"Coat,Shop,1,EUR', 'M2,"Screen 24""",Shop,2,EUR'], [(2, "name")], ["M2"]),
        (
            ['M1,"Coat,Shop,1,EUR', 'M2,"Coat,Shop,2,EUR', "M3,Coat,Shop,3,EUR"],
            [(2, "name"), (3, "name")],
            ["M3"],
        ),
        (['M1,Coat,Shop,1,"EUR'], [(2, "currency")], []),
        # A cell of two lines is one error; the line numbers after it are those of an editor.
        (['M1,"Coat', 'long",Shop,1,EUR', "M2,Coat,Shop,ten,EUR"], [(2, "name"), (4, "price")], []),
        (
            ['"M1', '",Coat,Shop,1,EUR', "M2,Coat,Shop,2,EUR", "M3,Coat"],
            [(2, "model"), (5, "")],
            ["M2"],
        ),
        (['M1,"Coat" 9,Shop,1,EUR', 'M2,24" screen,Shop,2,EUR'], [(2, "")], ["M2"]),
        (
            ["M1,Co\0at,Shop,1,EUR", "M2,Coat,Shop,2\0,EUR", "M3,Coat,Shop,3,EUR"],
            [(2, "name"), (3, "price")],
            ["M3"],
        ),
        (["M1,B\ufffdret,Shop,1,EUR", "M2,Coat,Shop,2,EUR"], [(2, "name")], ["M2"]),
        (["M1," + "x" * 140_000 + ",Shop,1,EUR", "M2,Coat,Shop,2,EUR"], [(2, "")], ["M2"]),
        (["M1,Coat,Shop,129,90,EUR", "M2,Coat,Shop,2,EUR,,"], [(2, "")], ["M2"]),
        (["\u200b,\u200b,Shop,1,EUR", ",,,,", "M2,Coat,Shop,2,EUR"], [(2, "")], ["M2"]),
    ],
)
def test_no_line_is_lost_without_a_word(
    lines: list[str], faults: list[tuple[int, str]], read: list[str]
) -> None:
    book = read_csv((HEADER + "\n".join(lines)).encode())
    assert (errors(book), models(book)) == (faults, read)


@pytest.mark.parametrize(
    ("cell", "amount"),
    [
        ("1.299,90", 1299.9),
        ("1,299.90", 1299.9),
        ("1 299,90", 1299.9),
        ("1\u202f299,90", 1299.9),
        ("1'299.90", 1299.9),
        ("1’299.90", 1299.9),
        ("1.299.900", 1299900),
        ("1,299,900.5", 1299900.5),
        ("129,9", 129.9),
        ("0,299", 0.299),
        ("0.299", 0.299),
        ("1299,900", 1299.9),
        ("12,3456", 12.3456),
        ("129,90 €", 129.9),
        ("€129.90", 129.9),
        ("EUR 129,90", 129.9),
        ("129,90\u00a0eur", 129.9),
        ("１２９，９０", 129.9),
        ("99999999.9999", 99_999_999.9999),
    ],
)
def test_amounts_are_read_as_people_write_them(cell: str, amount: float) -> None:
    book = priced(cell)
    assert not book.errors and book.entries[0]["price"] == amount


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("1.299", "two ways; write 1299.00 or 1.2990"),
        ("12,000", "two ways; write 12000.00 or 12.0000"),
        ("1.299.90", "not an amount"),
        ("1.29.900", "not an amount"),
        ("12,345,6", "not an amount"),
        ("-5", "not an amount"),
        ("0,00", "more than 0"),
        ("1e5", "not an amount"),
        ("12.34567", "four decimals"),
        ("100000000", "at most 99,999,999.9999"),
        ("10²", "not an amount"),
        ("½", "not an amount"),
        ("USD 10", "the line's currency, which is EUR"),
        ("$10", "the line's currency, which is EUR"),
    ],
)
def test_an_amount_that_is_none_or_can_be_two_is_refused(cell: str, says: str) -> None:
    book = priced(cell)
    assert errors(book) == [(2, "price")] and says in book.errors[0].message


@pytest.mark.parametrize(
    ("cell", "says"),
    [("$", "several currencies"), ("kr", "several"), ("", "is empty"), ("EURO", "three letters")],
)
def test_a_sign_of_several_currencies_is_none(cell: str, says: str) -> None:
    book = priced("10", cell)
    assert errors(book) == [(2, "currency")] and says in book.errors[0].message


def test_a_sign_may_stand_beside_an_amount_of_one_of_its_currencies() -> None:
    assert [
        book.entries[0]["currency"] for book in (priced("$10", "CAD"), priced("10 kr", "SEK"))
    ] == ["CAD", "SEK"]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_what_says_its_encoding_is_read(codec: str) -> None:
    assert (
        read_csv(f"{HEADER}A1,Béret 帽子,Shop,1,EUR\n".encode(codec)).entries[0]["name"]
        == "Béret 帽子"
    )


@pytest.mark.parametrize(
    ("name", "codec", "encoding"),
    [
        ("Béret Größe", "cp1252", "windows-1252"),
        ("Béret Größe", "latin-1", "ISO-8859-1"),
        ("Béret Größe", "mac-roman", "macintosh"),
        ("Béret Größe", "cp850", "ibm850"),
        ("Koszulka żółta", "cp1250", "windows-1250"),
        ("Пальто", "cp1251", "windows-1251"),
        ("帽子", "cp932", "shift_jis"),
        ("帽子", "gb18030", "gb18030"),
        ("모자", "cp949", "euc-kr"),
        ("Béret", "utf-16-le", "utf-16le"),
    ],
)
def test_what_does_not_say_its_encoding_is_read_as_told_and_never_guessed(
    name: str, codec: str, encoding: str
) -> None:
    data = f"{HEADER}A0,x,Shop,1,EUR\nA1,{name},Shop,1,EUR\n".encode(codec)
    assert read_csv(data, encoding).entries[1]["name"] == name
    with pytest.raises(DomainError, match="`encoding`") as refused:
        read_csv(data)
    assert codec == "utf-16-le" or "line 3" in refused.value.text


def test_one_who_knows_the_word_sees_which_encoding_it_is() -> None:
    with pytest.raises(DomainError, match="windows-1251 if it is 'Пальто'"):
        read_csv(f"{HEADER}A1,Пальто,Shop,1,RUB\n".encode("cp1251"))


@pytest.mark.parametrize(
    ("data", "encoding", "says"),
    [
        (b"PK\x03\x04 and more", "", "is a spreadsheet"),
        (b"\xff\xfea\0b", "", "begins with the mark of UTF-16-LE, but line 1"),
        (HEADER.encode(), "klingon", "'klingon' isn't known; there are utf-8"),
        (HEADER.encode() + b"\x81", "windows-1252", "isn't windows-1252, but line 2"),
        (b"sep=#\nmodel#price#currency", "", "there are comma, semicolon"),
        (b"model;model;price;currency\n", "", "'model' is column 1 and 2"),
        (b"\n\nmodel;colour;price;currency\n", "", "line 3 has the unknown column 'colour'"),
        (b'model,"price,currency\n', "", "line 1 can't be read as CSV"),
        (b"", "", "the header needs"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_do(data: bytes, encoding: str, says: str) -> None:
    with pytest.raises(DomainError, match=says):
        read_csv(data, encoding)


@pytest.mark.parametrize(
    "other",
    [
        unicodedata.normalize("NFD", "Béret Måns 24\" L'Été-X ﬁ"),
        "BÉRET MÅNS 24\" L'ÉTÉ-X FI",
        "  Béret\u00a0Måns\u2003 24″ L’Été‑X fi\u200b",
        "Ｂéret Måns ２４” Ｌ＇Été–X fi",
        "Bé\u00adret Måns 24“ L‘Été−X fi",
    ],
)
def test_names_that_look_the_same_are_the_same(other: str) -> None:
    names = [name.replace('"', '""') for name in ("Béret Måns 24\" L'Été-X fi", other)]
    book = read_csv(f'name;price;currency\n"{names[0]}";1;EUR\n"{names[1]}";1;EUR\n'.encode())
    assert len(book.entries) == 1 and "same offer as line 2" in book.errors[0].message


def test_names_that_differ_are_told_apart() -> None:
    assert (
        len(
            {
                folded(name)
                for name in ("Beret", "Béret", "Berets", "Be ret", "B-eret", "ベレット", "帽子")
            }
        )
        == 7
    )


def test_a_quotation_mark_is_not_followed_far() -> None:
    """Otherwise a file of open marks would be read to its end once for each of its lines."""
    lines = ['M1,"Coat', *["x"] * 25, 'long",Shop,1,EUR', "M2,Coat,Shop,2,EUR"]
    book = read_csv((HEADER + "\n".join(lines)).encode())
    assert errors(book) == [(2, "name"), *((line, "") for line in range(3, 29))] and models(
        book
    ) == ["M2"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"a" * 999_990 + b",\xff", id="one long word before a byte that isn't UTF-8"),
        pytest.param(b"sep=" + b" " * 990_000 + b"x\n", id="blanks behind the separator"),
        pytest.param(b"," * 999_000 + b"name,currency,price\n", id="columns without a name"),
    ],
)
def test_a_megabyte_that_means_nothing_is_read_without_holding_up_others(data: bytes) -> None:
    with suppress(DomainError):
        assert not read_csv(data).entries
