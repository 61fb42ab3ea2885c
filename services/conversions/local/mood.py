"""Turns the words of a prompt and a style into light, colour, grain and a palette."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import dist
from random import Random

from services.conversions.local import colours
from services.conversions.local.colours import Rgb


@dataclass(frozen=True)
class Mood:
    """The mood of a picture. wall: lightness (Lab) of the backdrop. chroma: factor on every colour.
    warmth: -1 cool .. 1 warm. grain: standard deviation of the film grain, in 8-bit steps. shapes:
    how busy, 0..1. words: those that had an effect."""

    wall: float = 86.0
    chroma: float = 1.0
    warmth: float = 0.0
    grain: float = 1.6
    shapes: float = 0.6
    words: tuple[str, ...] = ()


_WORDS: dict[str, dict[str, float]] = {
    "dark": {"wall": 22},
    "moody": {"wall": 26, "chroma": 0.85},
    "night": {"wall": 18, "warmth": -0.4},
    "dramatic": {"wall": 30, "chroma": 1.1},
    "luxury": {"wall": 27, "shapes": 0.4},
    "elegant": {"wall": 78, "shapes": 0.4},
    "bright": {"wall": 93},
    "light": {"wall": 92},
    "airy": {"wall": 94, "chroma": 0.7, "shapes": 0.35},
    "minimal": {"shapes": 0.2, "chroma": 0.65, "wall": 91},
    "minimalist": {"shapes": 0.2, "chroma": 0.65, "wall": 91},
    "clean": {"shapes": 0.3, "wall": 92},
    "studio": {"shapes": 0.3},
    "pastel": {"chroma": 0.55, "wall": 90},
    "muted": {"chroma": 0.6},
    "natural": {"chroma": 0.8, "warmth": 0.3},
    "organic": {"chroma": 0.8, "warmth": 0.3},
    "vivid": {"chroma": 1.4},
    "bold": {"chroma": 1.35, "shapes": 0.9},
    "playful": {"chroma": 1.25, "shapes": 1.0},
    "colourful": {"chroma": 1.35, "shapes": 0.9},
    "colorful": {"chroma": 1.35, "shapes": 0.9},
    "warm": {"warmth": 0.8},
    "sunny": {"warmth": 0.9, "wall": 90},
    "sunset": {"warmth": 1.0, "wall": 74},
    "autumn": {"warmth": 0.7, "wall": 76},
    "summer": {"warmth": 0.5, "wall": 91},
    "winter": {"warmth": -0.7, "wall": 88},
    "spring": {"warmth": 0.1, "wall": 91},
    "cool": {"warmth": -0.7},
    "coastal": {"warmth": -0.4, "wall": 89},
    "ocean": {"warmth": -0.8},
    "vintage": {"warmth": 0.5, "chroma": 0.75, "grain": 5.0},
    "retro": {"warmth": 0.4, "grain": 4.0, "shapes": 0.9},
    "film": {"grain": 5.0},
    "rustic": {"warmth": 0.6, "grain": 3.0},
    "industrial": {"chroma": 0.4, "wall": 62},
    "urban": {"chroma": 0.7, "wall": 58},
    "street": {"wall": 60, "shapes": 0.8},
    "monochrome": {"chroma": 0.0},
    "editorial": {"shapes": 0.45, "wall": 82},
}


def read(text: str) -> Mood:
    """Returns the mood of a text. Each known word in it counts once; a later one wins if two set
    the same thing."""
    mood, used = Mood(), []
    for word in dict.fromkeys(re.findall(r"[a-z]+", text.lower())):
        if word in _WORDS:
            mood = replace(mood, **_WORDS[word])  # type: ignore[arg-type]
            used.append(word)
    return replace(mood, words=tuple(used))


def palette(
    stated: Sequence[Rgb], measured: Sequence[Rgb], mood: Mood, random: Random
) -> list[Rgb]:
    """Returns five colours: what the text states first, then what was measured in the references,
    then colours in harmony with the first of them (or with a hue drawn by the seed if there is
    neither)."""
    distinct: list[Rgb] = []
    for colour in [*stated, *measured]:
        if all(dist(colours.to_lab(colour), colours.to_lab(other)) > 12 for other in distinct):
            distinct.append(colour)
    chosen = [_adjust(colour, mood) for colour in distinct[:5]]
    base = colours.to_lch(chosen[0]) if chosen else (58.0, 34.0, 360 * random.random())
    if not chosen:
        chosen.append(_adjust(colours.from_lch(*base), mood))
    turns = (28.0, -32.0, 180.0, 150.0) if random.random() < 0.6 else (-24.0, 120.0, 24.0, 180.0)
    for turn in turns[: 5 - len(chosen)]:
        lightness = 38 + 46 * random.random()
        chroma = max(14.0, min(46.0, base[1])) * (0.6 + 0.5 * random.random())
        tint = colours.from_lch(lightness, chroma, base[2] + turn)
        chosen.append(_adjust(tint, mood))
    return chosen


def wall(colour: Rgb, mood: Mood, shift: float = 0.0) -> Rgb:
    """Returns a calm backdrop that goes with a colour: little of its chroma, the mood's lightness
    plus `shift`."""
    _, chroma, hue = colours.to_lch(colour)
    quiet = min(chroma, 60) * (0.26 if mood.wall > 50 else 0.34) * min(mood.chroma, 1.2)
    return _warmed(colours.from_lch(max(4.0, min(97.0, mood.wall + shift)), quiet, hue), mood)


def _adjust(colour: Rgb, mood: Mood) -> Rgb:
    lightness, chroma, hue = colours.to_lch(colour)
    return _warmed(colours.from_lch(lightness, chroma * mood.chroma, hue), mood)


def _warmed(colour: Rgb, mood: Mood) -> Rgb:
    shift = 0.0 if mood.chroma == 0 else 7.0 * mood.warmth
    return (
        min(255.0, max(0.0, colour[0] + shift)),
        colour[1],
        min(255.0, max(0.0, colour[2] - shift)),
    )
