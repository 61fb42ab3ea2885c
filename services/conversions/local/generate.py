"""Makes a picture from a prompt by rules, without a learned model: a studio still of the
references, or an abstract composition.

Only the words that `mood` and `colours` list have an effect of their own; every other word changes
the picture only as part of the seed. Nothing is drawn that would pretend to be a product which the
caller did not show.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pyvips

from services.conversions.local import colours, mood, picture, subject
from services.conversions.local.colours import Rgb
from services.conversions.local.elements import subject_measures
from services.conversions.local.evidence import Evidence, Rendering, capped
from services.conversions.local.mood import Mood
from services.conversions.local.scene import Canvas

ASPECT_RATIOS = {
    "1:1": (1, 1),
    "4:3": (4, 3),
    "3:4": (3, 4),
    "16:9": (16, 9),
    "9:16": (9, 16),
    "3:2": (3, 2),
    "2:3": (2, 3),
}
RESOLUTIONS = {"1K": 1024, "2K": 2048}
FORMATS = ("jpeg", "png", "webp")
QUALITIES = {"draft": 74, "standard": 86, "high": 94}
"""JPEG and WebP quality; a draft is also drawn at half size and enlarged."""
MAX_PLACED = 4
_SEPARABLE = 0.3


@dataclass(frozen=True)
class _Piece:
    """A reference as it is placed: RGBA, cut out if it could be told from its backdrop, else a
    framed print."""

    image: pyvips.Image
    cut: bool
    separation: float
    colours: tuple[Rgb, ...]


def generate(
    prompt_full: str,
    references: Sequence[Path],
    out: Path,
    *,
    aspect_ratio: str = "1:1",
    resolution: str = "1K",
    quality: str = "standard",
    format: str = "jpeg",
    style: str | None = None,
    seed: int | None = None,
) -> Rendering:
    """Writes the picture to `out`, whose suffix must fit the format. Without a seed, one is derived
    from the inputs and named in the parameters. Raises ValueError, which names the parameter, for a
    value that isn't offered."""
    _check(out, aspect_ratio, resolution, quality, format)
    width, height = _size(aspect_ratio, resolution)
    digest = _digest(prompt_full, references, style)
    used_seed = int.from_bytes(digest[:4], "big") if seed is None else seed
    random = Random(hashlib.sha256(digest + str(used_seed).encode()).digest())
    words = mood.read(f"{prompt_full} {style or ''}")
    pieces = [_piece(path) for path in references[:MAX_PLACED]]
    stated = colours.mentioned(f"{prompt_full} {style or ''}")
    palette = mood.palette(stated, [c for piece in pieces for c in piece.colours], words, random)
    shrink = 2 if quality == "draft" else 1
    size = (width // shrink, height // shrink)
    image = (
        _studio(*size, pieces, palette, words, random)
        if pieces
        else _abstract(*size, palette, words, random)
    )
    if shrink > 1:
        image = image.resize(width / image.width, vscale=height / image.height, kernel="cubic")
    # References are put into a drawn scene; without any, shapes and colours follow from rules
    # alone.
    source_type = "compositeSynthetic" if pieces else "algorithmicMedia"
    picture.write(image, out, QUALITIES[quality], source_type)
    evidence = _evidence(pieces, len(references), stated, words)
    parameters = {
        "seed": used_seed,
        "style": style,
        "aspect_ratio": aspect_ratio,
        "resolution": resolution,
        "quality": quality,
        "format": format,
        "palette": [colours.code(colour) for colour in palette],
        "words_used": list(words.words),
        "references_used": len(pieces),
        "references_given": len(references),
        "composition": "studio" if pieces else "abstract",
    }
    return Rendering(width, height, capped(evidence), evidence, parameters, source_type)


def _check(out: Path, aspect_ratio: str, resolution: str, quality: str, format: str) -> None:
    for key, value, offered in (
        ("aspect_ratio", aspect_ratio, ASPECT_RATIOS),
        ("resolution", resolution, RESOLUTIONS),
        ("quality", quality, QUALITIES),
        ("format", format, FORMATS),
    ):
        if value not in offered:
            raise ValueError(f"{key}: {value!r} is not one of {', '.join(offered)}")
    if out.suffix.lower() not in ((".jpg", ".jpeg") if format == "jpeg" else (f".{format}",)):
        raise ValueError(f"out: its suffix {out.suffix!r} doesn't fit the format {format}")


def _size(aspect_ratio: str, resolution: str) -> tuple[int, int]:
    across, down = ASPECT_RATIOS[aspect_ratio]
    side = RESOLUTIONS[resolution]
    return side * across // max(across, down), side * down // max(across, down)


def _digest(prompt: str, references: Sequence[Path], style: str | None) -> bytes:
    """Returns a digest of prompt, references and style, so that another of these gives another
    composition."""
    parts = [prompt.encode(), (style or "").encode(), *(path.read_bytes() for path in references)]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _piece(path: Path) -> _Piece:
    photo = picture.open_upright(path, 1400)
    found = subject.find(photo)
    measured = tuple(
        colours.rgb(colour.hex) for colour in subject_measures(photo, found).colours[:2]
    )
    if found.separation >= _SEPARABLE:
        return _Piece(subject.cut_out(photo, found), True, found.separation, measured)
    frame = round(0.03 * max(photo.width, photo.height))
    size = (photo.width + 2 * frame, photo.height + 2 * frame)
    paper = picture.flat(photo).embed(
        frame, frame, *size, extend="background", background=[252, 251, 248]
    )
    return _Piece(paper.bandjoin(255).copy_memory(), False, found.separation, measured)


def _studio(
    width: int,
    height: int,
    pieces: Sequence[_Piece],
    palette: Sequence[Rgb],
    words: Mood,
    random: Random,
) -> pyvips.Image:
    """Draws wall and floor that meet in a soft curve, a panel in an accent colour, a lamp's light,
    and the references in front."""
    unit = min(width, height)
    accent = palette[min(len(palette) - 1, 2 + int(2 * random.random()))]
    backdrop = mood.wall(palette[0], words)
    canvas = Canvas(width, height, mood.wall(palette[0], words, 3), backdrop)
    horizon = height * (0.74 + 0.08 * random.random())
    floor = canvas.box(-width, horizon, 2 * width, 2 * height, 0)
    canvas.shade(floor, 0.05 * height, 0.05)
    canvas.fill(
        floor + 0.012 * height,
        mood.wall(palette[0], words, -5),
        mood.wall(palette[0], words, 2),
        0.75,
    )
    lamp = width * (0.22 + 0.56 * random.random())
    if words.shapes > 0.25:
        _panel(canvas, accent, backdrop, horizon, words, random)
    canvas.glow(lamp, height * 0.28, 0.95 * max(width, height), 0.2)
    canvas.settle()
    lean = (width / 2 - lamp) / width
    for piece, (left, top, scale) in zip(
        pieces, _layout(pieces, width, height, random), strict=True
    ):
        laid = piece.image.premultiply().resize(scale).unpremultiply().cast("uchar")
        canvas.lay(
            laid, round(left), round(top), (lean * 0.07 * unit, 0.022 * unit, 0.022 * unit, 0.34)
        )
        canvas.settle()
    return canvas.finish(words.grain * unit / 1024, int(2**31 * random.random()))


def _panel(
    canvas: Canvas, accent: Rgb, backdrop: Rgb, horizon: float, words: Mood, random: Random
) -> None:
    """Draws an arch, a disc or a board on the wall, in the accent colour mixed with the
    backdrop's."""
    unit, kind = min(canvas.width, canvas.height), random.random()
    centre = canvas.width * (0.5 + 0.12 * (random.random() - 0.5))
    half = min(0.40 * canvas.width, (0.34 + 0.06 * random.random()) * unit)
    if kind < 0.45:
        shape = canvas.arch(
            centre - half, max(0.06 * canvas.height, horizon - 2.7 * half), centre + half, horizon
        )
    elif kind < 0.75:
        shape = canvas.circle(centre, canvas.height * 0.44, half * 1.08)
    else:
        shape = canvas.box(centre - half, 0.08 * canvas.height, centre + half, horizon, 0.03 * unit)
    strength = 0.35 + 0.35 * words.shapes
    tint = tuple(a * strength + b * (1 - strength) for a, b in zip(accent, backdrop, strict=True))
    canvas.shade(shape, 0.03 * unit, 0.10)
    canvas.fill(shape, (tint[0], tint[1], tint[2]), (tint[0] * 0.9, tint[1] * 0.9, tint[2] * 0.9))


def _layout(
    pieces: Sequence[_Piece], width: int, height: int, random: Random
) -> list[tuple[float, float, float]]:
    """Returns left, top and scale of each piece. The first is the largest; the others stand beside
    it, or on a high canvas in a row below it."""
    margin = 0.09 * min(width, height)
    across, down = width - 2 * margin, height - 2 * margin
    shift = 0.04 * width * (random.random() - 0.5)
    if len(pieces) == 1 or width >= 0.95 * height:
        sizes = [1.0] + [0.78] * (len(pieces) - 1)
        row = _row(pieces, sizes, (margin, margin, across, down))
        if len(pieces) == 1:
            return [(left + shift, top, scale) for left, top, scale in row]
        if random.random() < 0.5:  # mirrored: the first one stands on the right
            row = [
                (width - left - piece.image.width * scale, top, scale)
                for piece, (left, top, scale) in zip(pieces, row, strict=True)
            ]
        return row
    split = 0.6 * down
    rest = (margin, margin + split + 0.04 * height, across, down - split - 0.04 * height)
    return _row(pieces[:1], [1.0], (margin, margin, across, split)) + _row(
        pieces[1:], [1.0] * len(pieces[1:]), rest
    )


def _row(
    pieces: Sequence[_Piece], sizes: Sequence[float], box: tuple[float, float, float, float]
) -> list[tuple[float, float, float]]:
    """Places pieces side by side on one base line, their heights in the given proportions, as large
    as the box allows. Returns left, top and scale of each."""
    left, top, across, down = box
    gap = 0.05 * across
    widths = [
        size * piece.image.width / piece.image.height
        for piece, size in zip(pieces, sizes, strict=True)
    ]
    unit = min(down / max(sizes), (across - gap * (len(pieces) - 1)) / sum(widths))
    x = left + (across - sum(widths) * unit - gap * (len(pieces) - 1)) / 2
    base = top + (down + max(sizes) * unit) / 2
    placed = []
    for piece, size, share in zip(pieces, sizes, widths, strict=True):
        placed.append((x, base - size * unit, size * unit / piece.image.height))
        x += share * unit + gap
    return placed


def _abstract(
    width: int, height: int, palette: Sequence[Rgb], words: Mood, random: Random
) -> pyvips.Image:
    """Draws paper-like shapes in the palette's colours, laid over each other with soft shadows, and
    no subject."""
    unit = min(width, height)
    canvas = Canvas(
        width, height, mood.wall(palette[0], words, 4), mood.wall(palette[1], words, -7)
    )
    canvas.glow(
        width * (0.2 + 0.6 * random.random()), height * 0.25, 0.9 * max(width, height), 0.16
    )
    for index in range(3 + round(5 * words.shapes)):
        colour = palette[index % len(palette)]
        x, y = width * (0.08 + 0.84 * random.random()), height * (0.1 + 0.8 * random.random())
        size = unit * (0.42 / (1 + 0.28 * index)) * (0.75 + 0.6 * random.random())
        kind = random.random()
        if kind < 0.34:
            shape = canvas.circle(x, y, size * 0.72)
        elif kind < 0.62:
            shape = canvas.arch(x - size * 0.6, y - size * 0.8, x + size * 0.6, y + size * 1.1)
        elif kind < 0.84:
            shape = canvas.box(
                x - size * 0.9, y - size * 0.55, x + size * 0.9, y + size * 0.6, size * 0.16
            )
        else:
            shape = canvas.circle(x, y, size * 0.66).abs() - size * 0.11
        canvas.shade(shape - 0.004 * unit, 0.035 * unit, 0.2)
        darker = (colour[0] * 0.86, colour[1] * 0.86, colour[2] * 0.88)
        canvas.fill(shape, colour, darker, 0.72 + 0.28 * random.random())
        canvas.settle()
    _strokes(canvas, palette, words, random)
    return canvas.finish((words.grain + 0.8) * unit / 1024, int(2**31 * random.random()))


def _strokes(canvas: Canvas, palette: Sequence[Rgb], words: Mood, random: Random) -> None:
    """Draws a few thin lines over the shapes, as a pen would."""
    unit = min(canvas.width, canvas.height)
    for index in range(1 + round(2 * words.shapes)):
        x, y, length = (
            canvas.width * random.random(),
            canvas.height * random.random(),
            unit * (0.25 + 0.4 * random.random()),
        )
        ink = palette[-1 - index % len(palette)]
        canvas.fill(
            canvas.stroke(x, y, x + length, y - length * 0.25, 0.006 * unit), ink, ink, 0.85
        )


def _evidence(
    pieces: Sequence[_Piece], given: int, stated: Sequence[Rgb], words: Mood
) -> tuple[Evidence, ...]:
    cut = sum(piece.cut for piece in pieces)
    understood = len(stated) + len(words.words)
    return (
        Evidence(
            "references",
            1.0 if pieces else 0.0,
            0.4,
            (
                f"{len(pieces)} of {given} references are shown"
                if given
                else "no references: shapes and colours only"
            ),
        ),
        Evidence(
            "separation",
            round(sum(p.separation for p in pieces) / len(pieces), 3) if pieces else 0.0,
            0.4,
            f"{cut} cut out of their backdrop, {len(pieces) - cut} shown as prints",
        ),
        Evidence(
            "prompt",
            min(1.0, understood / 3),
            0.2,
            f"{understood} words of prompt and style had an effect of their own",
        ),
    )
