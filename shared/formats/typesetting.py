"""Makes PDFs with typst: text is data and never markup, the compiler reads only one directory, and
uses none of the machine's fonts.

A service provides a template and a JSON file with the content; this module is the shared part.
It blocks: run it in a child process. Making a Press loads the compiler there; servers and workers
themselves never load it.
"""

import io
import json
import re
import resource
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import filetype

PICTURE_TYPES = frozenset({"jpg", "png", "gif", "webp"})
_EPOCH = datetime.fromtimestamp(0, UTC)
_FORGOTTEN_AFTER = 10  # compilations after which the compiler drops unused cache entries
# Memory on top of a child's usual limit, which is meant for untrusted pictures. A million letters
# in tables with five hundred marks on pictures take 650 MB in all.
_MORE_MEMORY = 512 * 1024 * 1024
_MOST_NAMED = 100  # missing characters in a warning; otherwise it could name thousands

# A run excludes spaces and the scripts that break between any two characters or at words that the
# compiler knows: Thai to Khmer, then Chinese, Japanese and Korean. It includes everything else,
# also the no-break space.
_RUN = (
    r"[^ \n\u200b\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    r"\u2e80-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_STEP = 4  # characters between two places where a long run may break
# Characters of one printed sign, such as a family of emoji; a longer cluster may break too.
_LONGEST_CLUSTER = 24
_MOST_MARKS = 4  # per letter, more than any script needs
_JOINER = "\u200d"
_KANA, _HANGUL = re.compile("[\u3041-\u30ff]"), re.compile("[\u1100-\u11ff\uac00-\ud7a3]")
_CARRIER = "\u00a0"  # a space that holds marks without a letter
_NEW_LINES = str.maketrans({"\t": " ", "\u2028": "\n", "\u2029": "\n"})


class CannotPrint(Exception):
    """The compiler refuses the template or a file that it uses; `args[0]` says why."""


class Press:
    """The compiler, confined to the directory `root`.

    Copies `template` there and writes fonts.json, the font families for it: Open Sans, then those
    of `fonts` (folders or files, see shared.settings) in their order, then the compiler's own. A
    font that no longer exists causes missing glyphs, not a failure.
    """

    def __init__(self, root: Path, template: Path, fonts: Sequence[Path] = ()) -> None:
        import typst

        _allow_memory()
        self._root = root
        self._scratch = root / "scratch.pdf"
        self._template = template.name
        bundled = str(files("ttf_opensans").joinpath("ttf"))
        folders = [
            str(_folder(path, root / f"fonts-{number}")) for number, path in enumerate(fonts)
        ]
        self._fonts = typst.Fonts(include_system_fonts=False, font_paths=[bundled, *folders])
        # The compiler's serif and mono fonts have Hebrew and Arabic; the caller's fonts come before
        # them.
        own = [family for folder in folders for family in _families(folder)]
        self._families = list(
            dict.fromkeys(["Open Sans", *own, "Libertinus Serif", "DejaVu Sans Mono"])
        )
        (root / "fonts.json").write_text(json.dumps(self._families), encoding="utf-8")
        (root / self._template).write_bytes(template.read_bytes())

    def prefer_for(self, text: str) -> None:
        """Puts the families first that draw Chinese characters as the language of `text` does: the
        same character has another form in Japan, in Korea and in China. Families of fonts for one
        of them end in JP, KR or SC."""
        ending = " JP" if _KANA.search(text) else " KR" if _HANGUL.search(text) else " SC"
        names = sorted(self._families[1:], key=lambda name: not name.endswith(ending))
        content = json.dumps([self._families[0], *names])
        (self._root / "fonts.json").write_text(content, encoding="utf-8")

    def print(self, target: Path, made_at: datetime) -> None:
        """Writes the template as a PDF; the same input gives the same bytes. Raises CannotPrint,
        mostly because a picture is broken."""
        try:
            self._compile(self._template, target, made_at)
        finally:
            self._forget()

    def draw(self, target: Path, pixels_per_inch: float) -> None:
        """Writes the template's only page as a PNG. Raises CannotPrint."""
        try:
            self._compile(self._template, target, _EPOCH, pixels_per_inch=pixels_per_inch)
        finally:
            self._forget()

    def _forget(self) -> None:
        """Empties the compiler's cache, which keeps layouts with their pictures: hundreds of
        megabytes that the next job of this process would lack."""
        (self._root / "nothing.typ").write_text("", encoding="utf-8")
        for _ in range(_FORGOTTEN_AFTER):
            self._compile("nothing.typ", self._scratch, _EPOCH)

    def can_show(self, picture: str) -> bool:
        """Returns whether a picture in `root` can be decoded. A broken one stops a compilation, and
        the error doesn't name it."""
        (self._root / "one.typ").write_text(f'#image("{picture}")', encoding="utf-8")
        try:
            self._compile("one.typ", self._scratch, _EPOCH)
        except CannotPrint:
            return False
        return True

    def missing_glyphs(self, text: str) -> str:
        """Returns a sentence about the characters of `text` that no font has, each once; '' if
        there are none.

        Only the compiler's archival profile refuses missing glyphs and names them, so every
        character is set once in a document that is thrown away.
        """
        suspects = sorted(c for c in set(text) if not c.isascii() and not _is_invisible(c))
        if not suspects:
            return ""
        (self._root / "characters.json").write_text(json.dumps(suspects), encoding="utf-8")
        source = '#set text(font: json("fonts.json"))\n#for c in json("characters.json") { par(c) }'
        (self._root / "characters.typ").write_text(source, encoding="utf-8")
        try:
            self._compile("characters.typ", self._scratch, _EPOCH, archival=True)
        except CannotPrint as error:
            named = "".join(re.findall(r'the text `"(.+?)"` could not be displayed', error.args[0]))
            return _said("".join(c for c in suspects if c in named))
        return ""

    def _compile(
        self,
        source: str,
        target: Path,
        made_at: datetime,
        archival: bool = False,
        pixels_per_inch: float = 0,
    ) -> None:
        """Writes a PDF, or with `pixels_per_inch` a PNG."""
        import typst

        packages = str(self._root / "no-packages")
        try:
            typst.compile(
                str(self._root / source),
                output=str(target),
                root=str(self._root),
                font_paths=self._fonts,
                ignore_system_fonts=True,
                format="png" if pixels_per_inch else "pdf",
                ppi=pixels_per_inch or None,
                pdf_standards="a-2u" if archival else [],
                timestamp=int(made_at.timestamp()),
                package_path=packages,
                package_cache_path=packages,
            )
        except typst.TypstError as error:
            raise CannotPrint(error.diagnostic) from None


def _allow_memory() -> None:
    """Raises the memory limit for this child's current job; the next job starts with the usual
    limit again."""
    limit, most = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_AS, (limit + _MORE_MEMORY, most))


def _folder(path: Path, link: Path) -> Path:
    """Returns a folder with the font, since the compiler reads only folders: a single file is
    linked into the new folder `link`."""
    if path.is_dir():
        return path
    link.mkdir()
    (link / path.name).symlink_to(path.resolve())
    return link


def _families(folder: str) -> list[str]:
    import typst

    fonts = typst.Fonts(
        include_system_fonts=False, include_embedded_fonts=False, font_paths=[folder]
    )
    return sorted(set(fonts.families()))


def link_pictures(pictures: Mapping[str, Path], root: Path) -> dict[str, str]:
    """Links or writes every JPEG, PNG, GIF or WebP file into `root` under a name of ours, never a
    caller's. Returns the names by key; files of other types have no key."""
    shown = {}
    for number, (key, path) in enumerate(sorted(pictures.items())):
        kind = filetype.guess(path) if path.is_file() else None
        if kind is None or kind.extension not in PICTURE_TYPES:
            continue
        name = f"picture-{number:04}"
        if kind.extension == "jpg" and (page := _page_of_jpeg(path)):
            shown[key] = f"{name}.pdf"
            (root / shown[key]).write_bytes(page)
        else:
            shown[key] = f"{name}.{kind.extension}"
            (root / shown[key]).symlink_to(path.resolve())
    return shown


def _page_of_jpeg(path: Path) -> bytes:
    """Returns a PDF page of the picture's size that holds the unchanged JPEG. The compiler copies
    such a page, while it would decode a picture: forty of 1,600 pixels take 30 MB, not 300. Returns
    b"" for a JPEG that the compiler must read itself: damaged, rotated, or neither grey nor RGB."""
    import pikepdf
    import pyvips

    try:
        image = pyvips.Image.new_from_file(str(path), access="sequential", fail_on="warning")
        image.avg()
    except pyvips.Error:
        return b""
    spaces = {"b-w": pikepdf.Name.DeviceGray, "srgb": pikepdf.Name.DeviceRGB}
    upright = "orientation" not in image.get_fields() or image.get("orientation") == 1
    if image.interpretation not in spaces or not upright:
        return b""
    pdf = pikepdf.new()
    page = pdf.add_blank_page(page_size=(image.width, image.height))
    pixels = pdf.make_stream(
        path.read_bytes(),
        Type=pikepdf.Name.XObject,
        Subtype=pikepdf.Name.Image,
        Width=image.width,
        Height=image.height,
        ColorSpace=spaces[image.interpretation],
        BitsPerComponent=8,
        Filter=pikepdf.Name.DCTDecode,
    )
    page.Resources = pikepdf.Dictionary(XObject=pikepdf.Dictionary(Picture=pixels))
    page.Contents = pdf.make_stream(b"%d 0 0 %d 0 0 cm /Picture Do" % (image.width, image.height))
    target = io.BytesIO()
    pdf.save(target, deterministic_id=True)
    return target.getvalue()


def tidy(text: str) -> str:
    """Returns the text in NFC, trimmed, with its line breaks, but without characters that can't be
    set or would make it read as another text. Excess marks on one letter are moved to carriers,
    where they are visible and cover nothing."""
    tidied = unicodedata.normalize("NFC", text).translate(_NEW_LINES)
    if not tidied.isprintable():
        tidied = "".join(c for c in tidied if c == "\n" or _is_printable(c))
    return ("".join(_unpiled(tidied)) if not tidied.isascii() else tidied).strip()


def _unpiled(text: str) -> Iterator[str]:
    marks = 0
    for character in text:
        marks = (
            marks + 1
            if unicodedata.combining(character) or unicodedata.category(character) == "Me"
            else 0
        )
        if marks > _MOST_MARKS:
            yield _CARRIER
            marks = 1
        yield character


def breakable(text: str, longest: int) -> str:
    """Inserts break opportunities every few characters into runs without a space that are longer
    than `longest`, which would leave their column. Scripts without spaces break by themselves."""
    return re.sub(rf"{_RUN}{{{longest + 1},}}", lambda run: "".join(_pieces(run[0])), text)


def _pieces(run: str) -> Iterator[str]:
    """Yields the run with a break after every few characters, but none between a letter and its
    marks."""
    since, before = 0, ""
    for character in run:
        if since >= _LONGEST_CLUSTER or (
            since >= _STEP and before != _JOINER and not _belongs_to_last(character)
        ):
            yield "\u200b"
            since = 0
        yield character
        since, before = since + 1, character


def _belongs_to_last(character: str) -> bool:
    is_mark = unicodedata.category(character)[0] == "M"
    return is_mark or character == _JOINER or "\U0001f3fb" <= character <= "\U0001f3ff"


def _is_invisible(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cf", "Zs", "Zl", "Zp")
        or "\ufe00" <= character <= "\ufe0f"
    )


def _said(missing: str) -> str:
    more = f" and {len(missing) - _MOST_NAMED:,} more" if len(missing) > _MOST_NAMED else ""
    return (
        f"{missing[:_MOST_NAMED]}{more}; no font here has them, the setting ATELIER_FONTS can name"
        " one that does"
    )


def _is_printable(character: str) -> bool:
    # Control characters and lone surrogates can't be set; bidi embeddings and overrides can make a
    # text read as another.
    return (
        unicodedata.category(character) not in ("Cc", "Cs")
        and character not in "\u202a\u202b\u202d\u202e"
    )
