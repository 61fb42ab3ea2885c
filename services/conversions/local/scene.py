"""A canvas on which flat shapes, light and cut-out pictures are laid, in floating point until it is
finished.

Coordinates are pixels, colours sRGB 0..255. Shapes are drawn from distance fields, so that their
edges are smooth at any size and their soft shadows need no blur.
"""

from collections.abc import Sequence

import pyvips

from services.conversions.local import picture
from services.conversions.local.colours import Rgb


class Canvas:
    """Width x height pixels, three bands, painted from back to front."""

    def __init__(self, width: int, height: int, top: Rgb, bottom: Rgb) -> None:
        """Starts as a gradient from the `top` colour down to the `bottom` one."""
        self.width, self.height = width, height
        self._grid = pyvips.Image.xyz(width, height)
        self.image = _mixed(top, bottom, self._grid[1] / height)

    def circle(self, x: float, y: float, radius: float) -> pyvips.Image:
        """Returns the distance of every pixel from a circle's edge; negative inside."""
        return pyvips.Image.sdf(self.width, self.height, "circle", a=[x, y], r=radius)

    def box(
        self, left: float, top: float, right: float, bottom: float, corner: float
    ) -> pyvips.Image:
        """Returns the distance from a box with round corners."""
        corner = max(0.0, min(corner, (right - left) / 2, (bottom - top) / 2))
        return pyvips.Image.sdf(
            self.width,
            self.height,
            "rounded-box",
            a=[left, top],
            b=[right, bottom],
            corners=[corner] * 4,
        )

    def arch(self, left: float, top: float, right: float, bottom: float) -> pyvips.Image:
        """Returns the distance from a doorway: a half circle on top of a box."""
        radius = (right - left) / 2
        round_top = self.circle((left + right) / 2, top + radius, radius)
        return _union(round_top, self.box(left, top + radius, right, bottom, 2))

    def stroke(self, x1: float, y1: float, x2: float, y2: float, thickness: float) -> pyvips.Image:
        """Returns the distance from a line with round ends."""
        return (
            pyvips.Image.sdf(self.width, self.height, "line", a=[x1, y1], b=[x2, y2])
            - thickness / 2
        )

    def fill(self, shape: pyvips.Image, upper: Rgb, lower: Rgb, opacity: float = 1.0) -> None:
        """Paints a shape with a gradient from the canvas' top to its bottom."""
        cover = picture.clip(shape * -1 + 0.5, 0, 1) * opacity
        self._lay(_mixed(upper, lower, self._grid[1] / self.height), cover)

    def shade(self, shape: pyvips.Image, softness: float, darkness: float) -> None:
        """Paints a shape's soft shadow: everything in it and up to `softness` pixels around it gets
        darker, by `darkness` 0..1."""
        near = picture.clip(shape / (-2 * softness) + 0.5, 0, 1)
        self.image = self.image * (1 - near * near * (3 - near * 2) * darkness)

    def glow(self, x: float, y: float, reach: float, gain: float) -> None:
        """Paints the light of a lamp at (x, y): brighter there, fading out over `reach` pixels; the
        far corners darken."""
        far = (((self._grid[0] - x) ** 2 + (self._grid[1] - y) ** 2) ** 0.5) / reach
        self.image = self.image * ((far * far * -1).exp() * gain + (1 - gain * 0.45))

    def lay(
        self, cut_out: pyvips.Image, left: int, top: int, shadow: tuple[float, float, float, float]
    ) -> None:
        """Lays an RGBA picture at (left, top) with its shadow: offset x, offset y, softness,
        darkness 0..1."""
        cover = cut_out[3] / 255
        offset_x, offset_y, softness, darkness = shadow
        margin = round(softness * 3)
        small = cover.embed(
            margin, margin, cover.width + 2 * margin, cover.height + 2 * margin
        ).shrink(6, 6)
        soft = small.gaussblur(max(0.6, softness / 6)).resize(6, kernel="linear")
        self.image = self.image * (
            1
            - self._framed(soft, round(left + offset_x) - margin, round(top + offset_y) - margin)
            * darkness
        )
        self._lay(self._framed(cut_out[:3], left, top), self._framed(cover, left, top))

    def finish(self, grain: float, seed: int) -> pyvips.Image:
        """Returns the picture in eight bits, with film grain, which also hides steps in
        gradients."""
        noise = pyvips.Image.gaussnoise(
            self.width, self.height, mean=0, sigma=max(0.7, grain), seed=seed
        )
        return (
            picture.clip(self.image + noise, 0, 255)
            .rint()
            .cast("uchar")
            .copy(interpretation="srgb")
            .copy_memory()
        )

    def settle(self) -> None:
        """Computes what was painted so far, so that a long chain of layers isn't evaluated tile by
        tile."""
        self.image = self.image.cast("float").copy_memory()

    def _lay(self, colour: pyvips.Image, cover: pyvips.Image) -> None:
        self.image = self.image * (1 - cover) + colour * cover

    def _framed(self, layer: pyvips.Image, left: int, top: int) -> pyvips.Image:
        return framed(layer, left, top, self.width, self.height)


def framed(layer: pyvips.Image, left: int, top: int, width: int, height: int) -> pyvips.Image:
    """Returns the layer in an empty frame of another size at (left, top), which may lie outside the
    frame."""
    skip_x, skip_y = max(0, -left), max(0, -top)
    if skip_x >= layer.width or skip_y >= layer.height:
        return layer.crop(0, 0, 1, 1).linear(0, 0).embed(0, 0, width, height)
    layer = layer.crop(skip_x, skip_y, layer.width - skip_x, layer.height - skip_y)
    return layer.embed(max(0, left), max(0, top), width, height)


def _mixed(first: Sequence[float], second: Sequence[float], share: pyvips.Image) -> pyvips.Image:
    return share * [b - a for a, b in zip(first, second, strict=True)] + list(first)


def _union(one: pyvips.Image, other: pyvips.Image) -> pyvips.Image:
    return (one < other).ifthenelse(one, other)
