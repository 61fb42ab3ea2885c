"""PDFs by typst: text is data and never markup, nothing is read but one directory, and no font of the machine is used.

A service brings a template and a JSON file with what to say; this is what they have in common. Blocking: run it in a
child process. The compiler is loaded there, when a Press is made; servers and workers themselves do without it.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import filetype

PICTURE_TYPES = frozenset({"jpg", "png", "gif", "webp"})
_EPOCH = datetime.fromtimestamp(0, UTC)
_FORGOTTEN_AFTER = 10  # compilations that don't need it, after which the compiler gives up what it keeps


class CannotPrint(Exception):
    """The compiler refuses the template with what it names; `args[0]` says why."""


class Press:
    """The compiler, shut into the directory `root`.

    Writes `template` there, and fonts.json, the families to name in it: Open Sans, then those of `font_directories`,
    then what comes with the compiler.
    """

    def __init__(self, root: Path, template: Path, font_directories: Sequence[Path] = ()) -> None:
        import typst

        self._root = root
        self._scratch = root / "scratch.pdf"
        self._template = template.name
        bundled = str(files("ttf_opensans").joinpath("ttf"))
        extra = [str(directory) for directory in font_directories]
        self._fonts = typst.Fonts(include_system_fonts=False, font_paths=[bundled, *extra])
        own = typst.Fonts(include_system_fonts=False, include_embedded_fonts=False, font_paths=extra)
        # Serif and mono come with the compiler and have Hebrew and Arabic; the caller's fonts go before them.
        families = ["Open Sans", *sorted(set(own.families())), "Libertinus Serif", "DejaVu Sans Mono"]
        (root / "fonts.json").write_text(json.dumps(families), encoding="utf-8")
        (root / self._template).write_bytes(template.read_bytes())

    def print(self, target: Path, made_at: datetime) -> None:
        """Writes the template as a PDF. The same input, the same bytes. CannotPrint: a picture is broken, mostly."""
        try:
            self._compile(self._template, target, made_at)
        finally:
            self._forget()

    def _forget(self) -> None:
        """The compiler keeps what it laid out, pictures and all, for the next time: hundreds of megabytes that the
        next job of this process would lack."""
        (self._root / "nothing.typ").write_text("", encoding="utf-8")
        for _ in range(_FORGOTTEN_AFTER):
            self._compile("nothing.typ", self._scratch, _EPOCH)

    def can_show(self, picture: str) -> bool:
        """Whether a file of `root` can be decoded. A broken one stops a compilation without saying which it was."""
        (self._root / "one.typ").write_text(f'#image("{picture}")', encoding="utf-8")
        try:
            self._compile("one.typ", self._scratch, _EPOCH)
        except CannotPrint:
            return False
        return True

    def missing_glyphs(self, text: str) -> str:
        """The characters of `text` that no font has, each once.

        Only the archival profile of the compiler refuses a missing glyph, and it names it; so every character
        is set once in a document that is thrown away.
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
            return "".join(c for c in suspects if c in named)
        return ""

    def _compile(self, source: str, target: Path, made_at: datetime, archival: bool = False) -> None:
        import typst

        packages = str(self._root / "no-packages")
        try:
            typst.compile(
                str(self._root / source),
                output=str(target),
                root=str(self._root),
                font_paths=self._fonts,
                ignore_system_fonts=True,
                format="pdf",
                pdf_standards="a-2u" if archival else [],
                timestamp=int(made_at.timestamp()),
                package_path=packages,
                package_cache_path=packages,
            )
        except typst.TypstError as error:
            raise CannotPrint(error.diagnostic) from None


def link_pictures(pictures: Mapping[str, Path], root: Path) -> dict[str, str]:
    """Gives every JPEG, PNG, GIF or WebP file a name of ours in `root`, which never comes from a caller. What is none
    of these has no key in the answer."""
    shown = {}
    for number, (key, path) in enumerate(sorted(pictures.items())):
        kind = filetype.guess(path) if path.is_file() else None
        if kind is not None and kind.extension in PICTURE_TYPES:
            shown[key] = f"picture-{number:03}.{kind.extension}"
            (root / shown[key]).symlink_to(path.resolve())
    return shown


def tidy(text: str) -> str:
    """NFC, without what can't be set or would make a text read as another; lines are kept, the ends are trimmed."""
    tidied = unicodedata.normalize("NFC", text).replace("\t", " ")
    if not tidied.isprintable():
        tidied = "".join(c for c in tidied if c == "\n" or _is_printable(c))
    return tidied.strip()


def breakable(text: str, longest: int) -> str:
    """Lets a run without a space that is longer than `longest` break anywhere, or it would leave its column."""
    return re.sub(rf"(\S{{{longest}}})(?=\S)", "\\1\u200b", text)


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Zs", "Zl", "Zp") or "\ufe00" <= character <= "\ufe0f"


def _is_printable(character: str) -> bool:
    # Control characters and lone surrogates cannot be set; explicit bidi overrides can make a text read as another.
    return unicodedata.category(character) not in ("Cc", "Cs") and character not in "\u202a\u202b\u202d\u202e"
