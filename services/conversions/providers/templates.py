"""What an operator gives to a model, as JSON with placeholders that each request fills."""

import re
from collections.abc import Mapping, Sequence

from services.conversions import rules
from services.conversions.providers import instructions
from services.conversions.providers.api import Json
from services.conversions.providers.contract import PictureRequest

PICTURE_TASKS = tuple(task for task in rules.TASKS if not task.startswith("analysis."))
# By task: the placeholders without which a model wouldn't see what it is about.
_NEEDED: Mapping[str, Sequence[str]] = {
    rules.CONVERSION_TASK: ("user", "cloth"),
    "generation.image": ("prompt",),
    "generation.closeup": ("source",),
    "generation.sketch": ("source",),
}
_NAMES = (
    "user",
    "cloth",
    "source",
    "references",
    "prompt",
    "style",
    "seed",
    "aspect_ratio",
    "resolution",
    "format",
    "width",
    "height",
)
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_LONGER_SIDES = {"": 1024, "1K": 1024, "2K": 2048}
_STEP = 16  # pixels; models want multiples of it


def fill(template: Json, values: Mapping[str, Json]) -> Json:
    """Returns the template with its placeholders replaced. A placeholder is a whole string, such as
    "{prompt}". A key or an item whose placeholder has no value is left out; in a list, a value that
    is a list adds all its items."""
    if isinstance(template, dict):
        return {
            key: fill(item, values) for key, item in template.items() if not _lacks(item, values)
        }
    if isinstance(template, list):
        found: list[Json] = []
        for item in template:
            if not _lacks(item, values):
                filled = fill(item, values)
                found += filled if _name(item) and isinstance(filled, list) else [filled]
        return found
    return values[name] if (name := _name(template)) else template


def placeholders(template: Json) -> set[str]:
    """Returns the names of the placeholders of a template."""
    if isinstance(template, dict):
        template = list(template.values())
    if isinstance(template, list):
        return {name for item in template for name in placeholders(item)}
    return {name} if (name := _name(template)) else set()


def problem(task: str, template: Json) -> str:
    """Returns what is wrong with a template for a task, "" if nothing is."""
    if task not in PICTURE_TASKS:
        return f"has no task {task[:60]!r}; there are {', '.join(PICTURE_TASKS)}"
    used = placeholders(template)
    for name in sorted(used - {*_NAMES}):
        known = ", ".join(f"{{{each}}}" for each in _NAMES)
        return f"has {{{name[:60]}}} for {task}, which nothing fills; there are {known}"
    for name in _NEEDED[task]:
        if name not in used:
            return f"gives {task} no {{{name}}}; put it where the model takes it"
    return ""


def values_of(request: PictureRequest, pictures: Sequence[tuple[str, str]]) -> dict[str, Json]:
    """Returns what the placeholders stand for in a request, without those that have no value.
    `pictures`: roles, and what the provider knows each picture by."""
    of_role = {role: where for role, where in pictures if role != "reference"}
    width, height = size(request)
    found = {
        **{name: of_role.get(name) for name in ("user", "cloth", "source")},
        "references": [where for role, where in pictures if role == "reference"],
        "prompt": instructions.picture(request),
        "style": request.style,
        "seed": request.seed,
        "aspect_ratio": request.aspect_ratio,
        "resolution": request.resolution,
        "format": request.file_format,
        "width": width,
        "height": height,
    }
    return {name: value for name, value in found.items() if value not in (None, "", [])}


def described(template: Json, request: PictureRequest) -> Json:
    """Returns what a model was given, for the recipe: the pictures by their numbers. What the
    operator wrote as words stays out: some models take a key among them."""
    shown = [
        (each.role, f"picture {number}") for number, each in enumerate(request.pictures, start=1)
    ]
    return fill(_without_words(template), values_of(request, shown))


def _without_words(template: Json) -> Json:
    if isinstance(template, dict):
        return {key: _without_words(item) for key, item in template.items() if not _is_words(item)}
    if isinstance(template, list):
        return [_without_words(item) for item in template if not _is_words(item)]
    return template


def _is_words(item: Json) -> bool:
    return isinstance(item, str) and not _name(item)


def size(request: PictureRequest) -> tuple[int | None, int | None]:
    """Returns the width and height in pixels that were asked for, None without a ratio."""
    if not request.aspect_ratio:
        return None, None
    across, down = map(int, request.aspect_ratio.split(":"))
    scale = _LONGER_SIDES[request.resolution] / max(across, down)
    width, height = (max(_STEP, round(each * scale / _STEP) * _STEP) for each in (across, down))
    return width, height


def _name(item: Json) -> str:
    """Returns the name of the placeholder that an item is, "" if it is none."""
    match = _PLACEHOLDER.fullmatch(item) if isinstance(item, str) else None
    return match[1] if match else ""


def _lacks(item: Json, values: Mapping[str, Json]) -> bool:
    name = _name(item)
    return name != "" and name not in values
