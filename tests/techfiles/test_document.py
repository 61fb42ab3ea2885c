"""What a factory can rely on in the finished document."""

import re
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pypdf
import pytest
import pyvips

from services.techfiles.document import (
    BillItem,
    Callout,
    Closeup,
    CreditLine,
    Dimension,
    Feature,
    Material,
    Pack,
    Point,
    PointOfMeasure,
    Price,
    Product,
    Provenance,
    Sketch,
    Source,
    View,
)
from services.techfiles.printing import DocumentWarning, render_pdf
from tests.fonts import one_character_font
from tools import print_fonts

WHEN = datetime(2026, 11, 20, 8, 30, 10, tzinfo=UTC)
MEASURED: Source = "measured from declared scale"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = {}
    for name, width, height in (
        ("front", 600, 800),
        ("back", 600, 800),
        ("sketch", 600, 800),
        ("zip", 400, 300),
    ):
        shade = pyvips.Image.xyz(width, height)[0] * (200 / width)
        made[name] = folder / f"{name}.jpg"
        shade.bandjoin([shade + 20, shade + 40]).cast("uchar").jpegsave(str(made[name]))
    return made


def full_pack() -> Pack:
    shell = Material("shell", "washed canvas", "340 g/m2", "sand", "#c2b280", "Tessitura Alba")
    return Pack(
        title="First sample",
        created_at=WHEN,
        product=Product(
            "Harbour jacket",
            "HC-204",
            "Northline",
            "Outerwear",
            "Jackets",
            "new",
            "never worn",
            "A boxy jacket.",
            ("work",),
        ),
        collection="Spring line",
        version="v3",
        owner="Northline Studio",
        cover="front",
        views=(
            View(
                "front",
                "front",
                (
                    Dimension(
                        "body length",
                        72,
                        "cm",
                        Decimal("1.0"),
                        "supplied",
                        Point(0.5, 0.1),
                        Point(0.5, 0.9),
                    ),
                    Dimension(
                        "hem width", 56.5, "cm", 0.5, MEASURED, Point(0.2, 0.9), Point(0.8, 0.9)
                    ),
                ),
                (shell,),
                (Feature("two-way opening", "from both ends", Point(0.5, 0.5)),),
            ),
            View(
                "back",
                "back",
                (Dimension("yoke depth", 14, "cm", 0.25),),
                (shell,),
                (Feature("yoke", None, None),),
            ),
        ),
        sketches=(
            Sketch(
                "front",
                "sketch",
                (
                    Callout(1, 0.5, 0.1, "stand collar", "interlined"),
                    Callout(2, None, None, "hanger loop"),
                ),
                (Dimension("pocket width", Decimal("16.0"), "cm", "0.30"),),
            ),
        ),
        closeups=(Closeup("zip end", "front", "zip", "bar tack"),),
        materials=(shell,),
        bill_of_materials=(
            BillItem("main zip", "brass", 1, "piece", "antique", "#8d7a52", "Zipworks"),
        ),
        points_of_measure=(
            PointOfMeasure(
                "A",
                "chest width",
                58,
                "cm",
                1.5,
                "front",
                MEASURED,
                Point(0.2, 0.4),
                Point(0.8, 0.4),
            ),
        ),
        price=Price(Decimal("189.00"), "EUR"),
        care=("wash cold",),
        credits=(CreditLine("sketches", "local", 2),),
        provenance=(
            Provenance(
                "front photograph",
                "0198f3a2-7c11",
                "ab" * 32,
                "photograph supplied by the caller",
                WHEN,
            ),
        ),
    )


def text_of(pdf: Path) -> str:
    """Returns the text of all pages with single spaces, without the marks of an allowed line
    break."""
    pages = " ".join(page.extract_text() for page in pypdf.PdfReader(pdf).pages)
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", pages).replace("\u200b", ""))


def test_everything_the_owner_stated_is_printed_as_it_was_given(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "pack.pdf"
    assert render_pdf(full_pack(), pictures, target) == []
    text = text_of(target)

    for fact in (
        "First sample",
        "Harbour jacket",
        "HC-204",
        "Northline",
        "Outerwear",
        "Jackets",
        "new",
        "never worn",
        "A boxy jacket.",
        "work",
        "Spring line",
        "v3",
        "2026-11-20",
        "Northline Studio",
        "body length",
        "72 cm",
        "± 1.0 cm",
        "hem width",
        "56.5 cm",
        "± 0.5 cm",
        "measured from declared scale",
        "shell",
        "washed canvas",
        "340 g/m2",
        "sand",
        "#c2b280",
        "Tessitura Alba",
        "two-way opening",
        "from both ends",
        "14 cm",
        "± 0.25 cm",
        "stand collar",
        "interlined",
        "hanger loop",
        "pocket width",
        "16.0 cm",
        "± 0.30 cm",
        "zip end",
        "bar tack",
        "main zip",
        "brass",
        "1 piece",
        "antique",
        "#8d7a52",
        "Zipworks",
        "chest width",
        "58 cm",
        "± 1.5 cm",
        "189.00 EUR",
        "wash cold",
        "sketches local 2",
        "front photograph",
        "0198f3a2-7c11",
        "ab" * 32,
        "photograph supplied by the caller",
    ):
        assert fact in text, fact


def test_no_figure_with_a_unit_is_printed_that_nobody_stated(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    render_pdf(full_pack(), pictures, tmp_path / "pack.pdf")
    printed = set(
        re.findall(
            r"\d[\d.,]*\s?(?:mm|cm|m|in|g/m2|g|kg|%|EUR|piece|dpi|px|pt)\b",
            text_of(tmp_path / "pack.pdf"),
        )
    )

    stated = {
        "72 cm",
        "1.0 cm",
        "56.5 cm",
        "0.5 cm",
        "14 cm",
        "0.25 cm",
        "16.0 cm",
        "0.30 cm",
        "58 cm",
        "1.5 cm",
    }
    assert printed == stated | {"340 g/m2", "189.00 EUR", "1 piece"}


def test_what_is_unknown_says_so_and_is_never_blank(tmp_path: Path) -> None:
    target = tmp_path / "pack.pdf"
    bare = Pack(
        "Bare",
        WHEN,
        product=Product(name="  "),
        views=(View("front"),),
        bill_of_materials=(BillItem("zip"),),
    )
    render_pdf(bare, {}, target)
    text = text_of(target)

    for label in (
        "Model",
        "Brand",
        "Category",
        "Condition",
        "Price",
        "Description",
        "Care",
        "Dimensions",
        "Sketches",
    ):
        assert f"{label} not supplied" in text, label
    assert "zip not supplied not supplied not supplied not supplied" in text
    assert "PICTURE not supplied" in text


def test_blank_values_anywhere_still_make_a_document(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    line = (Point(0.1, 0.1), Point(0.9, 0.1))
    blank = Pack(
        title=" ",
        created_at=WHEN,
        product=Product("", "", "", "", "", "", "", "", ("", " ")),
        views=(
            View(
                "",
                "front",
                (Dimension(None), Dimension("", None, "cm", 1, "supplied", *line)),
                (Material(),),
            ),
        ),
        sketches=(
            Sketch(" ", None, (Callout(1, 0.5, 0.5, None, ""),), (Dimension(" "),)),
            Sketch("x", "sketch"),
        ),
        closeups=(Closeup("", "", None, ""),),
        materials=(Material("", "", "", "", "no colour"),),
        bill_of_materials=(BillItem(None),),
        points_of_measure=(
            PointOfMeasure(None, None, None, "", None, None, "supplied", *line, picture="front"),
        ),
        price=Price("", ""),
        care=("",),
        credits=(CreditLine("", None, 0),),
        provenance=(Provenance("", "", "", ""),),
    )

    assert render_pdf(blank, pictures, tmp_path / "pack.pdf") == []
    assert "Price not supplied" in text_of(tmp_path / "pack.pdf")


def test_a_complete_pack_never_says_not_supplied(pictures: dict[str, Path], tmp_path: Path) -> None:
    render_pdf(full_pack(), pictures, tmp_path / "pack.pdf")
    assert "not supplied" not in text_of(tmp_path / "pack.pdf")


def test_every_page_carries_its_number_the_style_and_the_section(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    render_pdf(full_pack(), pictures, tmp_path / "pack.pdf")
    reader = pypdf.PdfReader(tmp_path / "pack.pdf")
    texts = [re.sub(r"\s+", " ", page.extract_text()) for page in reader.pages]
    # Cover, contents, product, two views, sketch, close-ups, materials with the bill, points,
    # guide, provenance.
    assert len(texts) == 11
    for number, text in enumerate(texts, 1):
        assert f"{number} of 11" in text and "Harbour jacket" in text and "v3" in text

    sections = [
        "Cover",
        "Contents",
        "Product",
        "Base views",
        "Base views",
        "Sketches",
        "Close-ups",
        "Materials, Bill",
    ]
    sections += ["Points of measure", "Points of measure", "Credits and provenance"]
    assert all(section in text for section, text in zip(sections, texts, strict=True))
    assert re.search(r"Sketches[ .]*6", texts[1]) and re.search(
        r"Credits and provenance[ .]*11", texts[1]
    )
    assert (
        round(float(reader.pages[0].mediabox.width)) == 842
        and round(float(reader.pages[0].mediabox.height)) == 595
    )


def busy_sketch(lengths: int) -> Sketch:
    """Returns a sketch with lengths that cross in the middle or lie on one another, and call-outs
    on top of them."""
    ends = [
        (Point(0.5 - dx, 0.5 - dy), Point(0.5 + dx, 0.5 + dy))
        for dx, dy in ((0.4, 0), (0, 0.4), (0.3, 0.3), (0, 0))
    ]
    return Sketch(
        "front",
        "sketch",
        tuple(
            Callout(n, 0.5, 0.5 + n / 500, f"call-out {n}", "turned up, top-stitched")
            for n in range(1, 9)
        ),
        tuple(
            Dimension(
                f"length {n}, from the shoulder to the hem",
                n + 40,
                "cm",
                1,
                MEASURED,
                *ends[n % 4],
                f"M{n}",
            )
            for n in range(lengths)
        ),
    )


def runs_of(page: pypdf.PageObject) -> list[tuple[str, float, float, float]]:
    """Returns the pieces of text on a page as (text, x, y, size), in points from the lower left
    corner."""
    found: list[tuple[str, float, float, float]] = []

    def note(
        text: str, where: list[float], _inner: list[float], _font: object, size: float
    ) -> None:
        if text.strip():
            found.append((text.strip(), where[4], where[5], size))

    page.extract_text(visitor_text=note)
    return found


def sketch_page(pdf: Path) -> pypdf.PageObject:
    return next(page for page in pypdf.PdfReader(pdf).pages if "length 0," in page.extract_text())


def labels_of(page: pypdf.PageObject) -> list[tuple[str, float, float]]:
    """Returns the labels on a page's picture, whose panel is between 35 and 380 points from the
    left."""
    return [
        (text, x, y) for text, x, y, size in runs_of(page) if size == 7 and 35 < x < 380 and y > 60
    ]


def test_what_is_said_of_a_picture_stands_beside_it_if_it_can(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    shell = Material("body lining", "woven fusible, 100 % cotton", "340 g/m2", "slate grey")
    features = tuple(
        Feature(f"feature {n}", "patch pocket with clipped corners, double top-stitched")
        for n in range(8)
    )
    view = View(
        "front",
        "front",
        tuple(Dimension(f"width {n}", n, "cm") for n in range(4)),
        (shell,) * 5,
        features,
    )
    pack = Pack("Sample", WHEN, views=(view,), sketches=(busy_sketch(12),))
    render_pdf(pack, pictures, tmp_path / "pack.pdf")
    pages = [page.extract_text() for page in pypdf.PdfReader(tmp_path / "pack.pdf").pages]

    beside = [text for text in pages if "feature 0" in text or "call-out 1" in text]
    assert len(beside) == 2 and "feature 7" in beside[0] and "length 11" in beside[1]
    assert not any("(continued)" in text for text in pages)


@pytest.mark.long
def test_every_page_has_a_heading_and_something_under_it(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    pack = replace(
        full_pack(),
        sketches=(busy_sketch(70),),
        bill_of_materials=tuple(BillItem(f"item {n}", "brass") for n in range(60)),
        closeups=tuple(Closeup(f"detail {n}", "front", "zip") for n in range(4)),
    )
    render_pdf(pack, pictures, tmp_path / "pack.pdf")
    titles = []

    for page in pypdf.PdfReader(tmp_path / "pack.pdf").pages[1:]:
        runs = runs_of(page)
        titles += [" ".join(text for text, _, y, size in runs if size == 15 and y > 530)]
        # The title block is below 60 points.
        assert page.images or len([y for _, _, y, _ in runs if 60 < y < 525]) > 10, titles[-1]
    assert titles[:5] == ["Contents", "Product", "Base views", "Base views", "Sketches"]
    assert titles[5] == "Sketches: front (continued)"
    assert (
        "Close-ups (continued)" in titles
        and "Bill of materials (continued)" in titles
        and "" not in titles
    )


def test_a_section_with_nothing_in_it_still_has_its_heading(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    pack = replace(full_pack(), materials=(), bill_of_materials=(), points_of_measure=())
    render_pdf(pack, pictures, tmp_path / "pack.pdf")
    pages = [runs_of(page) for page in pypdf.PdfReader(tmp_path / "pack.pdf").pages]
    titles = [[text for text, _, _, size in runs if size == 15] for runs in pages]
    assert ["Materials", "Bill of materials", "Points of measure"] in titles


def test_labels_on_a_picture_never_cover_one_another(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    render_pdf(Pack("Busy", WHEN, sketches=(busy_sketch(12),)), pictures, tmp_path / "pack.pdf")
    labels = labels_of(sketch_page(tmp_path / "pack.pdf"))

    assert sorted(text for text, _, _ in labels) == sorted(
        [f"M{n}" for n in range(12)] + [str(n) for n in range(1, 9)]
    )
    for index, (text, x, y) in enumerate(labels):
        for other, across, up in labels[:index]:
            # A label is at least 13 points wide, its text a little less, and 13 points high.
            assert abs(x - across) > 11 or abs(y - up) > 13, (text, other)


@pytest.mark.long
def test_few_lengths_carry_their_values_and_many_their_codes(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    few, many = busy_sketch(3), busy_sketch(6)
    uncoded = replace(
        many, measurements=tuple(replace(length, code=None) for length in many.measurements)
    )

    for sketch, expected in (
        (few, {"40 cm", "41 cm", "42 cm"}),
        (many, {f"M{n}" for n in range(6)}),
        (uncoded, set("abcdef")),
    ):
        render_pdf(
            Pack("Busy", WHEN, sketches=(replace(sketch, callouts=()),)),
            pictures,
            tmp_path / "pack.pdf",
        )
        page = sketch_page(tmp_path / "pack.pdf")

        labels = {text.replace("\xa0", " ") for text, _, _ in labels_of(page)}
        assert labels == expected
        assert all(f"length {n}," in page.extract_text() for n in range(len(sketch.measurements)))


def test_text_that_looks_like_code_is_printed_and_not_run(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    attacks = (
        '#read("/etc/passwd")',
        "*bold* _it_",
        "$x^2$",
        '#include "pack.json"',
        "`raw`",
        "<label> @ref",
        "] #panic() [",
        '"); #panic("',
        "\\u{41}",
        "// gone",
        "/* gone */",
        "= head",
        "https://example.org/a",
        "--- ...",
        "~",
    )
    pack = replace(
        full_pack(),
        product=Product(name=attacks[0]),
        care=attacks,
        title=attacks[0],
        collection=attacks[1],
    )
    render_pdf(pack, pictures, tmp_path / "pack.pdf")
    text = text_of(tmp_path / "pack.pdf")
    for attack in attacks:
        assert unicodedata.normalize("NFKC", attack) in text, attack
    assert "root:" not in text

    metadata = pypdf.PdfReader(tmp_path / "pack.pdf").metadata
    assert metadata is not None and metadata.title == attacks[0]


def test_a_picture_is_never_read_under_a_name_of_the_callers(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    keys = {"../../etc/passwd": pictures["front"], '") #panic("': pictures["back"]}
    pack = Pack("Odd", WHEN, cover="../../etc/passwd", views=(View("front", '") #panic("'),))
    assert render_pdf(pack, keys, tmp_path / "pack.pdf") == []
    assert sum(len(page.images) for page in pypdf.PdfReader(tmp_path / "pack.pdf").pages) >= 2


def test_the_same_pack_gives_the_same_bytes_in_any_process(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    render_pdf(full_pack(), pictures, tmp_path / "here.pdf")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as workers:
        assert (
            workers.submit(render_pdf, full_pack(), pictures, tmp_path / "there.pdf").result() == []
        )

    here, there = (tmp_path / "here.pdf").read_bytes(), (tmp_path / "there.pdf").read_bytes()
    assert here == there
    render_pdf(replace(full_pack(), version="v4"), pictures, tmp_path / "here.pdf")
    assert (tmp_path / "here.pdf").read_bytes() != there


def test_a_very_long_text_is_printed_whole(tmp_path: Path) -> None:
    words = " ".join(f"word{n}" for n in range(2_000))
    pack = Pack(
        "Long", WHEN, product=Product(name="n" * 3_000, description=words), collection="c" * 3_000
    )
    assert render_pdf(pack, {}, tmp_path / "pack.pdf") == []
    text = text_of(tmp_path / "pack.pdf")
    assert all(f"word{n}" in text for n in range(2_000))
    assert "n" * 3_000 in text.replace(" ", "") and "c" * 3_000 in text.replace(" ", "")


@pytest.mark.long
def test_forty_pictures_and_tables_over_many_pages_keep_their_headers(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    pack = replace(
        full_pack(),
        closeups=tuple(Closeup(f"detail {n}", "front", "zip") for n in range(36)),
        bill_of_materials=tuple(BillItem(f"item {n}", "brass") for n in range(90)),
    )
    render_pdf(pack, pictures, tmp_path / "pack.pdf")
    pages = [page.extract_text() for page in pypdf.PdfReader(tmp_path / "pack.pdf").pages]
    bill = [text for text in pages if re.search(r"item \d", text)]
    assert len(bill) > 3 and all("QUANTITY" in text for text in bill)

    text = text_of(tmp_path / "pack.pdf")
    assert all(f"detail {n}" in text for n in range(36)) and all(
        f"item {n}" in text for n in range(90)
    )


def test_a_picture_that_cannot_be_shown_is_left_out_and_named(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    broken, drawing = tmp_path / "broken.png", tmp_path / "drawing.svg"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(400))
    drawing.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    given = {**pictures, "broken": broken, "drawing": drawing}
    pack = replace(
        full_pack(),
        cover="broken",
        closeups=(Closeup("a", None, "drawing"), Closeup("b", None, "nowhere")),
    )

    warnings = render_pdf(pack, given, tmp_path / "pack.pdf")
    assert sorted(w.detail.split(":")[0] for w in warnings if w.reason == "picture") == [
        "broken",
        "drawing",
        "nowhere",
    ]
    assert text_of(tmp_path / "pack.pdf").count("PICTURE cannot be shown") == 3


def test_a_point_outside_its_picture_is_not_drawn_but_listed(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    sketch = Sketch(
        "front",
        "sketch",
        (Callout(7, 1.2, 0.5, "far away"), Callout(8, float("nan"), 0.5, "nowhere")),
    )
    warnings = render_pdf(replace(full_pack(), sketches=(sketch,)), pictures, tmp_path / "pack.pdf")
    assert warnings == [DocumentWarning("position", f"sketches[0].callouts[{n}]") for n in (0, 1)]
    assert "far away" in text_of(tmp_path / "pack.pdf")


def test_scripts_of_the_bundled_fonts_print_and_missing_characters_are_listed(
    tmp_path: Path,
) -> None:
    name = "Jäckchen Жук Ψ שלום 夾克 漢 夾"
    warnings = render_pdf(
        Pack("Scripts", WHEN, product=Product(name=name)), {}, tmp_path / "pack.pdf"
    )
    [warning] = warnings
    assert warning.reason == "missing glyphs" and warning.detail.startswith("克夾漢; ")
    assert "ATELIER_FONTS" in warning.detail
    assert "Jäckchen Жук Ψ" in text_of(tmp_path / "pack.pdf")


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_font_that_is_given_supplies_what_the_bundled_fonts_lack(
    tmp_path: Path, given: str
) -> None:
    font = one_character_font(tmp_path / "fonts" / "House.ttf", "漢")
    pack = Pack("Fonts", WHEN, product=Product(name="漢克"))
    [warning] = render_pdf(
        pack, {}, tmp_path / "pack.pdf", [font if given == "file" else font.parent]
    )
    assert warning.detail.startswith("克; ")
    assert "漢" in text_of(tmp_path / "pack.pdf")
    assert any("House" in str(font) for font in fonts_of(tmp_path / "pack.pdf"))


def fonts_of(pdf: Path) -> set[str]:
    """Returns the names of the fonts that the pages use."""
    found: list[Any] = [page["/Resources"] for page in pypdf.PdfReader(pdf).pages]
    resources = [each.get("/Font", {}) for each in found]
    return {font.get_object()["/BaseFont"] for named in resources for font in named.values()}


def test_a_text_from_right_to_left_stands_at_the_right(tmp_path: Path) -> None:
    bill = (BillItem("שרשרת", "brass"), BillItem("zip", "brass"))
    render_pdf(Pack("Bill", WHEN, bill_of_materials=bill), {}, tmp_path / "pack.pdf")
    [page] = [
        page
        for page in pypdf.PdfReader(tmp_path / "pack.pdf").pages
        if "zip" in page.extract_text()
    ]
    runs = runs_of(page)
    hebrew = min(x for text, x, _, _ in runs if re.search("[א-ת]", text))
    latin = min(x for text, x, _, _ in runs if text == "zip")

    brass = min(x for text, x, _, _ in runs if text == "brass")
    assert latin + 40 < hebrew < brass


def test_a_number_stays_with_its_unit_in_a_text_from_right_to_left(tmp_path: Path) -> None:
    pack = Pack(
        "Shirt", WHEN, Product(condition_details="Shirt חולצה 12.5 cm", description="ב-30 °C")
    )
    render_pdf(pack, {}, tmp_path / "pack.pdf")
    [page] = [
        page
        for page in pypdf.PdfReader(tmp_path / "pack.pdf").pages
        if "12.5" in page.extract_text()
    ]
    runs = runs_of(page)
    places = {text.strip(): x for text, x, _, _ in runs if text.strip()}
    hebrew = next(x for text, x in places.items() if "חולצה" in text or "הצלוח" in text)
    number = next(x for text, x in places.items() if "12.5" in text)
    # Without care the number would stand between the two words, away from its unit.
    assert hebrew < number
    assert "30 °C" in page.extract_text().replace("\u00a0", " ")


def test_no_sign_of_a_source_can_be_written_by_a_caller(tmp_path: Path) -> None:
    pack = Pack("Shirt", WHEN, Product(name="Jacket\U0010f002\U0010f017"))
    render_pdf(pack, {}, tmp_path / "pack.pdf")
    pages = pypdf.PdfReader(tmp_path / "pack.pdf").pages
    assert not any("F7" in page.extract_text() for page in pages)


@pytest.mark.long
@pytest.mark.needs_node
def test_fonts_out_of_packages_print_every_script_that_they_are_for(tmp_path: Path) -> None:
    print_fonts.main(tmp_path / "fonts")
    words = ("毛衣", "セーター", "스웨터", "قميص", "חולצה", "เสื้อ", "स्वेटर")
    pack = Pack("Words", WHEN, Product(keywords=words))
    assert render_pdf(pack, {}, tmp_path / "pack.pdf", [tmp_path / "fonts"]) == []
    assert {warning.reason for warning in render_pdf(pack, {}, tmp_path / "bare.pdf")} == {
        "missing glyphs"
    }
    licences = list((tmp_path / "fonts").rglob("LICENSE"))
    assert len(licences) == 7 and all("Open Font License" in f.read_text() for f in licences)


def test_a_price_has_the_digits_of_its_currency_and_no_number_those_of_a_float(
    tmp_path: Path,
) -> None:
    bill = (BillItem("tape", "cotton", 0.1 + 0.2, "m"), BillItem("thread", "cotton", 1e-7, "kg"))
    for amount, currency, shown in (
        (129.9, "EUR", "129.90 EUR"),
        (5000.0, "JPY", "5000 JPY"),
        (1.5, "KWD", "1.500 KWD"),
    ):
        pack = Pack("Bill", WHEN, price=Price(amount, currency), bill_of_materials=bill)
        render_pdf(pack, {}, tmp_path / "pack.pdf")

        text = text_of(tmp_path / "pack.pdf")
        assert (
            shown in text
            and "0.3 m" in text
            and "0.0000001 kg" in text
            and "e-07" not in text
            and "0.30" not in text
        )
