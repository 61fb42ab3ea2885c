"""What a customer can rely on in the PDF: every word as it was given, exact sums, nothing beyond
the edge."""

import re
import unicodedata
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pypdf
import pytest

from services.assets.documents.layout import Imprint, budget, render_pdf, schedule
from shared.imaging import ImagingPool
from tests.assets import flows
from tests.fonts import one_character_font

WHEN = datetime(2026, 2, 20, 9, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = {}
    for number, (width, height) in enumerate(((800, 500), (300, 700), (1200, 300))):
        made[f"p{number}"] = folder / f"{number}.jpg"
        made[f"p{number}"].write_bytes(flows.jpeg(width, height, seed=number))
    return made


def checklist(items: list[dict[str, Any]], **cover: Any) -> dict[str, Any]:
    sections = [{"title": "Kitchen", "description": "By the owners.", "items": items}]
    return {"cover": {"title": "Handover", **cover}, "checklist": {"sections": sections}}


def plan(**body: Any) -> dict[str, Any]:
    return {"cover": {"title": "Ground floor"}, "renovation_plan": body}


def line(price: str, currency: str = "EUR", **fields: str) -> dict[str, str]:
    return {"description": "x", "unit_price": price, "currency": currency, **fields}


def rendered(
    content: dict[str, Any], target: Path, pictures: dict[str, Path] | None = None
) -> list[str]:
    """Renders the content; returns the text of each page."""
    kind = "checklist" if "checklist" in content else "renovation_plan"
    assert render_pdf(content, Imprint(kind, 3, WHEN), pictures or {}, target) == []
    return [" ".join(page.extract_text().split()) for page in pypdf.PdfReader(target).pages]


def left_edges(target: Path) -> list[float]:
    """Returns the distances of pieces of text from the left edge of the page, in points."""
    found: list[float] = []
    for page in pypdf.PdfReader(target).pages:
        page.extract_text(
            visitor_text=lambda text, _m, at, *_: found.append(at[4]) if text.strip() else None
        )
    return found


def heights(target: Path) -> list[float]:
    """Returns the distances of pieces of text from the bottom edge of the page, in points."""
    found: list[float] = []

    def note(text: str, m: list[float], at: list[float], *_: Any) -> None:
        if text.strip():
            found.append(at[4] * m[1] + at[5] * m[3] + m[5])

    for page in pypdf.PdfReader(target).pages:
        page.extract_text(visitor_text=note)
    return found


@pytest.mark.long
def test_five_hundred_items_keep_their_heading_and_number_on_every_page(tmp_path: Path) -> None:
    items = [{"text": f"item {n}.", "quantity": str(n), "done": n % 2 == 0} for n in range(500)]
    pages = rendered(checklist(items), tmp_path / "a.pdf")
    assert len(pages) > 10
    whole = " ".join(pages)
    assert all(f" item {n}." in whole for n in range(500))
    for number, text in enumerate(pages, 1):
        assert f"Page {number} of {len(pages)}" in text and "20 Feb 2026 · v3" in text
        assert re.search(r"Kitchen \(continued\)", text) if number > 1 else "500 items" in text


@pytest.mark.long
def test_an_item_and_its_note_stay_on_one_page(tmp_path: Path) -> None:
    for before in range(20, 30):  # wherever the item is placed on the page
        items = [{"text": "filler"}] * before + [
            {"text": f"item {n}.", "note": f"note {n}."} for n in range(10)
        ]
        for page in rendered(checklist(items), tmp_path / "a.pdf"):
            assert re.findall(r"item (\d)\.", page) == re.findall(r"note (\d)\.", page)


@pytest.mark.long
def test_no_total_stands_alone_on_a_page(tmp_path: Path) -> None:
    for count in range(18, 28):
        lines = [
            line("1", category="Labour"),
            *(line("2", description=f"line {n}.") for n in range(count)),
        ]
        [page] = [
            page for page in rendered(plan(budget=lines), tmp_path / "a.pdf") if " Total " in page
        ]
        assert f"line {count - 1}." in page and "Sum of Other" in page


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "count"),
    [("long " * 190, 1), ("\n".join("abcdefghij" * 40), 3), ("x", 400)],
    ids=["long", "lines", "many"],
)
def test_what_is_longer_than_a_page_is_there_to_its_end(
    tmp_path: Path, text: str, count: int
) -> None:
    items = [{"text": text[:990] + "END", "note": text + "END"} for _ in range(count)]
    assert "".join(rendered(checklist(items), tmp_path / "a.pdf")).count("END") == 2 * count

    currencies = [f"A{a}{b}" for a in "ABCDEFGHIJKLMNOPQRST" for b in "ABCDEFGHIJKLMNOPQRST"][
        :count
    ]
    lines = [line("1", currency, description=text[:490] + "END") for currency in currencies]
    told = "".join(rendered(plan(budget=lines), tmp_path / "b.pdf"))
    assert told.count("END") == count and all(told.count(currency) >= 3 for currency in currencies)
    assert min(y for name in ("a.pdf", "b.pdf") for y in heights(tmp_path / name)) > 0


def test_a_schedule_that_begins_within_a_month_names_that_month() -> None:
    found = schedule([{"name": "a", "first": "2026-03-02", "last": "2026-05-20", "dates": ""}], [])
    assert found is not None and [tick["label"] for tick in found["ticks"]] == ["Mar", "Apr", "May"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, pictures: dict[str, Path]) -> None:
    content = plan(rooms=[{"name": "Hall", "picture_asset_ids": list(pictures)}])
    for name in ("a", "b"):
        rendered(content, tmp_path / f"{name}.pdf", pictures)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_sums_are_exact_each_currency_by_itself() -> None:
    lines = [
        line("0.10", quantity="3", category="Small"),
        line("0.20", category="Small"),
        line("19.995", quantity="3"),
        line("-5"),
        line("1000", "JPY"),
        line("999999999999.9999", "CHF", quantity="999999999.999"),
    ]

    found = budget(lines)
    assert found is not None
    assert found["totals"] == [
        {"currency": "EUR", "amount": "55.485"},
        {"currency": "JPY", "amount": "1,000"},
        {"currency": "CHF", "amount": "999,999,999,998,999,900,000.0000001"},
    ]
    assert [(group["name"], group["sums"][0]["amount"]) for group in found["groups"]] == [
        ("Small", "0.50"),
        ("Other", "54.985"),
    ]


def test_many_small_amounts_add_up_as_they_do_on_paper() -> None:
    found = budget([line("0.1")] * 1000)
    assert found is not None and found["totals"] == [{"currency": "EUR", "amount": "100.00"}]
    assert not found["grouped"]


def test_a_schedule_lies_within_its_days() -> None:
    phases: list[dict[str, Any]] = [
        {"name": "a", "first": "2026-03-02", "last": "2026-03-06", "dates": ""},
        {"name": "b", "first": None, "last": None, "dates": None},
        {"name": "c", "first": "2026-03-07", "last": "2026-03-11", "dates": ""},
        {"name": "d", "first": None, "last": "2026-03-03", "dates": ""},
    ]

    found = schedule(phases, [{"date": "2026-03-11", "text": "end"}])
    assert found is not None
    assert [(bar["name"], bar["from"], bar["to"]) for bar in found["bars"]] == [
        ("a", 0.0, 0.5),
        ("c", 0.5, 1.0),
        ("d", 0.1, 0.2),
    ]
    assert [(tick["label"], tick["at"]) for tick in found["ticks"]] == [
        ("2 Mar", 0.0),
        ("9 Mar", 0.7),
    ]
    assert found["milestones"][0]["at"] == pytest.approx(0.95)
    assert schedule([phases[1]], []) is None


@pytest.mark.parametrize("days", [0, 1, 6, 70, 71, 400, 900, 901, 20_000, 3_600_000])
@pytest.mark.parametrize("start", ["2026-01-01", "2025-12-31", "0001-01-01"])
def test_a_schedule_of_any_length_has_few_ticks_inside_it(days: int, start: str) -> None:
    first = date.fromisoformat(start)
    last = date.fromordinal(min(first.toordinal() + days, date.max.toordinal()))
    found = schedule([{"name": "a", "first": start, "last": last.isoformat(), "dates": ""}], [])
    assert found is not None and len(found["ticks"]) <= 7
    assert all(0 <= tick["at"] < 1 for tick in found["ticks"])


def test_pictures_that_cannot_be_shown_are_left_out_and_named(
    tmp_path: Path, pictures: dict[str, Path]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(400))
    content = plan(rooms=[{"name": "Hall", "picture_asset_ids": ["p0", "broken"]}])
    target = tmp_path / "a.pdf"

    found = render_pdf(
        content, Imprint("renovation_plan", 1, WHEN), {**pictures, "broken": broken}, target
    )
    assert found == ["picture: broken: it cannot be shown"]
    assert sum(len(page.images) for page in pypdf.PdfReader(target).pages) == 1


def test_text_that_looks_like_code_is_printed_and_not_run(tmp_path: Path) -> None:
    attacks = (
        '#read("/etc/passwd")',
        "*bold* _it_",
        "$x^2$",
        '#include "document.json"',
        "`raw`",
        "<label> @ref",
        "] #panic() [",
        '"); #panic("',
        "\\u{41}",
        "// gone",
        "/* gone */",
        "= head",
        "~",
        "<script>alert(1)</script>",
        "'; DROP TABLE documents; --",
    )
    content = checklist([{"text": text, "note": text} for text in attacks], introduction=attacks[0])

    whole = " ".join(rendered(content, tmp_path / "a.pdf"))
    for attack in attacks:
        assert whole.count(unicodedata.normalize("NFKC", attack)) >= 2, attack
    assert "root:" not in whole


@pytest.mark.long
def test_very_long_texts_stay_on_the_page_whole(tmp_path: Path, pictures: dict[str, Path]) -> None:
    content = plan(
        rooms=[{"name": "n" * 200, "description": "d" * 4000, "picture_asset_ids": list(pictures)}],
        phases=[
            {
                "name": "p" * 200,
                "start_date": "2026-01-01",
                "end_date": "2027-01-01",
                "tasks": (
                    [
                        {
                            "text": "t" * 1000,
                            "note": "word " * 400,
                            "room": "R" * 200,
                            "responsible": "Q" * 200,
                        }
                    ]
                    * 3
                ),
            }
        ],
        milestones=[{"date": "2026-05-01", "text": "m" * 300}],
        budget=[
            line("-999999999999.9999", quantity="999999999.999", unit="u" * 20, category="c" * 100)
        ]
        * 3,
    )
    content["cover"] |= {"title": "x" * 200, "prepared_for": "y" * 200, "prepared_by": "z" * 200}

    whole = "".join(rendered(content, tmp_path / "a.pdf", pictures)).replace(" ", "")
    assert whole.count("d") >= 4000 and whole.count("t") >= 3000 and whole.count("R") >= 600
    assert max(left_edges(tmp_path / "a.pdf")) < 595 - 50


def test_right_to_left_and_missing_characters_are_told(tmp_path: Path) -> None:
    content = checklist(
        [{"text": "שלום עולם"}, {"text": "夾克"}, {"text": "مطبخ"}], prepared_by="Жук Ψ"
    )
    found = render_pdf(content, Imprint("checklist", 1, WHEN), {}, tmp_path / "a.pdf")
    [warning] = found
    assert warning.startswith("missing glyphs: 克夾; ") and "ATELIER_FONTS" in warning


def test_a_font_that_is_given_is_used(tmp_path: Path) -> None:
    font = one_character_font(tmp_path / "House.ttf", "漢")
    target = tmp_path / "a.pdf"
    assert (
        render_pdf(checklist([{"text": "漢"}]), Imprint("checklist", 1, WHEN), {}, target, [font])
        == []
    )
    assert "漢" in pypdf.PdfReader(target).pages[0].extract_text()


def test_nothing_but_a_title_is_still_a_document(tmp_path: Path) -> None:
    [page] = rendered(plan(), tmp_path / "a.pdf")
    assert "Ground floor" in page and "Page 1 of 1" in page
    [page] = rendered(checklist([]), tmp_path / "b.pdf")
    assert "0 items" in page


def test_texts_of_nothing_visible_are_left_out(tmp_path: Path) -> None:
    content = plan(
        rooms=[{"name": " ", "description": "\u202e"}],
        phases=[{"name": "\x07", "tasks": [{"text": "\t"}]}],
        milestones=[{"date": "2026-01-01", "text": " "}],
        budget=[line("1", category=" ")],
    )
    content["cover"]["title"] = " "
    assert rendered(content, tmp_path / "a.pdf")


@pytest.mark.long
async def test_what_was_printed_before_leaves_room_for_the_next(tmp_path: Path) -> None:
    """Long documents are printed one after the other in one child process: none lacks memory that
    earlier ones took."""
    pool = ImagingPool(1)
    try:
        for number in range(6):
            printed = tmp_path / f"{number}.pdf"
            content = checklist(
                [{"text": f"wor{number} " * 200, "note": f"not{number} " * 100} for _ in range(250)]
            )
            await pool.run(
                render_pdf, content, Imprint("checklist", 1, WHEN), {}, printed, timeout=60
            )
            assert printed.stat().st_size
    finally:
        await pool.close()
