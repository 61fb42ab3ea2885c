"""ThumbHash, a compact placeholder format with libraries for browsers:
https://evanw.github.io/thumbhash/.

It packs an average colour and a few cosine coefficients of lightness, of two colour differences
and, if there is any, of alpha into about 25 bytes.
"""

from itertools import chain
from math import cos, floor, pi


def thumbhash(width: int, height: int, rgba: bytes) -> bytes:
    """Returns the ThumbHash of `width` x `height` pixels (1..100 each) of 4 bytes R, G, B, A, with
    alpha not premultiplied."""
    red, green, blue, alpha = (list(rgba[band::4]) for band in range(4))
    weight = sum(alpha)
    opacity = [a / 255 for a in alpha]
    # Transparent pixels take the average colour, so that they don't bias the coefficients.
    r, g, b = (_over_average(band, opacity, weight) for band in (red, green, blue))
    has_alpha = weight < 255 * width * height
    most = 5 if has_alpha else 7
    nx, ny = (max(1, _round(most * side / max(width, height))) for side in (width, height))
    lightness = _cosines(
        [(x + y + z) / 3 for x, y, z in zip(r, g, b, strict=True)], width, max(3, nx), max(3, ny)
    )
    yellow_blue = _cosines([(x + y) / 2 - z for x, y, z in zip(r, g, b, strict=True)], width, 3, 3)
    red_green = _cosines([x - y for x, y in zip(r, g, strict=True)], width, 3, 3)
    landscape = width > height
    head = _round(63 * lightness[0]) | _round(31.5 + 31.5 * yellow_blue[0]) << 6
    head |= (
        _round(31.5 + 31.5 * red_green[0]) << 12 | _round(31 * lightness[1]) << 18 | has_alpha << 23
    )
    tail = (
        (ny if landscape else nx)
        | _round(63 * yellow_blue[1]) << 3
        | _round(63 * red_green[1]) << 9
        | landscape << 15
    )
    packed = head.to_bytes(3, "little") + tail.to_bytes(2, "little")
    channels = [lightness, yellow_blue, red_green]
    if has_alpha:
        transparency = _cosines(opacity, width, 5, 5)
        packed += bytes([_round(15 * transparency[0]) | _round(15 * transparency[1]) << 4])
        channels.append(transparency)
    nibbles = [
        _round(15 * value) for value in chain.from_iterable(channel[2] for channel in channels)
    ]
    nibbles += [0] * (len(nibbles) % 2)
    return packed + bytes(
        low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True)
    )


def _over_average(band: list[int], opacity: list[float], weight: int) -> list[float]:
    average = (
        sum(value * a for value, a in zip(band, opacity, strict=True)) / weight if weight else 0.0
    )
    return [average * (1 - a) + value / 255 * a for value, a in zip(band, opacity, strict=True)]


def _cosines(plane: list[float], width: int, nx: int, ny: int) -> tuple[float, float, list[float]]:
    """Returns the mean, the largest absolute value of the other coefficients, and these scaled by
    it to 0..1; the coefficients are the lower triangle of nx x ny."""
    height = len(plane) // width
    rows = [plane[start : start + width] for start in range(0, len(plane), width)]
    across = [[cos(pi / width * cx * (x + 0.5)) for x in range(width)] for cx in range(nx)]
    down = [[cos(pi / height * cy * (y + 0.5)) for y in range(height)] for cy in range(ny)]
    by_row = [
        [sum(v * c for v, c in zip(row, wave, strict=True)) for row in rows] for wave in across
    ]
    values = [
        sum(v * c for v, c in zip(by_row[cx], down[cy], strict=True)) / len(plane)
        for cy in range(ny)
        for cx in range(nx)
        if cx * ny < nx * (ny - cy)
    ]
    mean, others = values[0], values[1:]
    scale = max(map(abs, others))
    return mean, scale, [0.5 + 0.5 / scale * value for value in others] if scale else others


def _round(value: float) -> int:
    return floor(value + 0.5)
