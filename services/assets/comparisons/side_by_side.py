"""Makes one picture of two: before on the left, after on the right, at one height, each named in
its corner.

`compose` runs in a limited child process, like everything that decodes: libvips is loaded only
when it is called.
"""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyvips

VERSION = "1"
_LEAST_HEIGHT, _MOST_HEIGHT = 480, 1600
# A cell's width divided by its height. A picture of a shape beyond that is shown whole in the cell,
# on a grey ground.
_NARROWEST, _WIDEST = 0.5, 2.0
_NEARLY = 0.04  # shapes that differ by less are shown in cells of one width
_GROUND: list[float] = [242, 243, 243]
_PAPER: list[float] = [255, 255, 255]
_QUALITY = 90


def compose(before: Path, after: Path, target: Path) -> None:
    """Writes a JPEG to `target`. Both pictures must have passed `inspect`; they are turned upright
    and converted to sRGB."""
    from shared.imaging.decode import load_scaled

    pictures: list[pyvips.Image] = [
        load_scaled(path, 2 * _MOST_HEIGHT, _MOST_HEIGHT) for path in (before, after)
    ]
    height = min(max(_LEAST_HEIGHT, *(picture.height for picture in pictures)), _MOST_HEIGHT)
    widths = _widths([picture.width / picture.height for picture in pictures], height)
    margin = height // 40
    cells = [
        _named(_cell(picture, width, height), name, margin)
        for picture, width, name in zip(pictures, widths, ("BEFORE", "AFTER"), strict=True)
    ]
    row = cells[0].join(cells[1], "horizontal", shim=margin, background=_PAPER)
    framed = row.embed(
        margin, margin, row.width + 2 * margin, row.height + 2 * margin, background=_PAPER
    )
    # Encoded in memory and written by Python, so that a full disk is an OSError and no fault of the
    # pictures.
    target.write_bytes(framed.jpegsave_buffer(Q=_QUALITY, optimize_coding=True, keep="none"))


def _widths(shapes: list[float], height: int) -> list[int]:
    shown = [min(max(shape, _NARROWEST), _WIDEST) for shape in shapes]
    if abs(shown[0] / shown[1] - 1) < _NEARLY:
        shown = [max(shown)] * 2
    return [round(shape * height) for shape in shown]


def _cell(picture: "pyvips.Image", width: int, height: int) -> "pyvips.Image":
    """Shows the whole picture, as large as the cell allows, in the middle of it."""
    opaque = picture.flatten(background=_PAPER) if picture.hasalpha() else picture
    fitted = opaque.thumbnail_image(width, height=height, size="both")
    return fitted.gravity("centre", width, height, extend="background", background=_GROUND)


def _named(cell: "pyvips.Image", name: str, margin: int) -> "pyvips.Image":
    """Writes the name in white on a dark ground in the upper left corner."""
    import pyvips

    font = files("ttf_opensans").joinpath("ttf", "OpenSans-SemiBold.ttf")
    letters: pyvips.Image = pyvips.Image.text(
        name,
        font="Open Sans SemiBold",
        fontfile=str(font),
        height=cell.height // 34,
        width=cell.width // 3,
    )
    pad = cell.height // 48
    width, height = letters.width + 3 * pad, letters.height + 2 * pad
    shape = letters.embed((width - letters.width) // 2, pad, width, height)
    white = shape.new_from_image(_PAPER).copy(interpretation="srgb")
    under = cell.crop(margin, margin, width, height)
    dark = (under * 0.25 + 8).cast("uchar")
    return cell.insert(shape.ifthenelse(white, dark, blend=True), margin, margin)
