"""Workflows of ComfyUI as an operator gives them: JSON in the editor's API format, with
placeholders that each request fills. What a workflow may hold is checked at start, so that no job
meets it."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.conversions import rules
from services.conversions.providers import instructions
from services.conversions.providers.api import Json
from services.conversions.providers.contract import PictureRequest, ProviderFailed
from shared.settings import WrongSetting

_MOST_BYTES = 1024 * 1024
MOST_REFERENCES = 16
_REFERENCES = tuple(f"reference_{number}" for number in range(1, MOST_REFERENCES + 1))
_PICTURES: Mapping[str, Sequence[str]] = {
    rules.CONVERSION_TASK: ("user", "cloth"),
    "generation.image": _REFERENCES,
    "generation.sketch": ("source",),
}
# Without these a workflow wouldn't see what it is about.
_NEEDED: Mapping[str, Sequence[str]] = {
    rules.CONVERSION_TASK: ("user", "cloth"),
    "generation.image": ("prompt",),
    "generation.sketch": ("source",),
}
_WORDS = ("prompt", "style", "seed", "width", "height", "aspect_ratio", "resolution")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
# A path, as against the name of a model such as `sdxl/base.safetensors`.
_PATH = re.compile(r"[/\\~]|[A-Za-z]:[\\/]|[a-z]+://|(.*[/\\])?\.\.([/\\].*)?$", re.DOTALL)
# Inputs by which nodes that load a picture name it.
_FILE_INPUTS = re.compile(r"image|images|image_\w+|url|path|file|file_?\w*|directory|folder")
_LONGER_SIDES = {"": 1024, "1K": 1024, "2K": 2048}
_STEP = 16  # pixels; models want multiples of it
_SETTING = "ATELIER_COMFYUI_WORKFLOWS"


@dataclass(frozen=True)
class Workflow:
    """A workflow that was checked. `used`: the names of its placeholders. `result`: the node whose
    title is `result`, "" if none has it. `version`: the beginning of the file's SHA-256."""

    name: str
    version: str
    nodes: Mapping[str, Json]
    used: frozenset[str]
    result: str

    def title_of(self, node: str) -> str:
        """Returns a node as its author knows it."""
        kind = str(self.nodes[node]["class_type"])[:60] if node in self.nodes else "unknown"
        return f"node {node[:20]} ({kind})"


def read(task: str, path: str) -> Workflow:
    """Reads and checks the workflow for a task. Raises WrongSetting that names the setting, the
    file, the node, and what to do."""
    where = f"{_SETTING}: {task}: {path}"
    if task not in _PICTURES:
        raise WrongSetting(
            f"{_SETTING} has no task {task[:60]!r}; there are {', '.join(_PICTURES)}"
        )
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise WrongSetting(f"{where} can't be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise WrongSetting(f"{where} has more than 1 MB; a workflow has a few kB")
    try:
        nodes = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise WrongSetting(f"{where} isn't JSON") from None
    if not isinstance(nodes, dict) or not nodes or not all(map(_is_node, nodes.values())):
        raise WrongSetting(
            f"{where} isn't in API format; in ComfyUI export it by Workflow > Export (API)"
        )
    used = {name for node in nodes.values() for name in placeholders(node["inputs"])}
    if problem := _problem(task, nodes, used):
        raise WrongSetting(f"{where}: {problem}")
    titled = [key for key, node in nodes.items() if _title(node).lower() == "result"]
    version = hashlib.sha256(content).hexdigest()[:12]
    return Workflow(
        Path(path).stem[:100], version, nodes, frozenset(used), titled[0] if titled else ""
    )


def _no_constant(text: str) -> Json:
    raise WrongSetting(text)


def _is_node(node: Json) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _title(node: Json) -> str:
    meta = node.get("_meta")
    return str(meta.get("title") or "") if isinstance(meta, dict) else ""


def _problem(task: str, nodes: Mapping[str, Json], used: set[str]) -> str:
    """Returns what is wrong with a workflow, "" if nothing is."""
    known = (*_PICTURES[task], *_WORDS)
    for key, node in nodes.items():
        place = f"node {key[:20]} ({node['class_type'][:60]})"
        for name, text in _strings(node["inputs"]):
            place_of = f"{place}, input {name[:60]}"
            if whole := _PLACEHOLDER.fullmatch(text):
                if whole[1] not in known:
                    names = ", ".join(f"{{{each}}}" for each in known)
                    return f"{place_of} has {text[:60]}, which nothing fills; there are {names}"
            elif inner := next((n for n in _PLACEHOLDER.findall(text) if n in known), ""):
                return f"{place_of} has {{{inner}}} inside other text; it must be the whole value"
            elif _PATH.match(text):
                return (
                    f"{place_of} names a file ({text[:60]!r}); a workflow names models by the names"
                    " that ComfyUI lists, and pictures by placeholders"
                )
        if "loadimage" in node["class_type"].lower() and (wrong := _fixed_picture(task, node)):
            return f"{place}, {wrong}"
    for name in _NEEDED[task]:
        if name not in used:
            return f"nothing takes {{{name}}}; put it where the workflow needs it"
    return ""


def _fixed_picture(task: str, node: Json) -> str:
    """Returns what is wrong with a node that loads a picture: it may load only what a request
    brings."""
    allowed = {f"{{{name}}}" for name in _PICTURES[task]}
    named = [name for name in node["inputs"] if _FILE_INPUTS.fullmatch(name)]
    for name in named or [""]:
        value = node["inputs"].get(name)
        if not isinstance(value, list) and value not in allowed:
            first = ", ".join(sorted(allowed)[:2])
            return (
                f"input {name[:60] or 'image'} loads a file of the server; put a placeholder there,"
                f" such as {first}"
            )
    return ""


def _strings(value: Json, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields the texts in a node's inputs, each with the name of its input."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _strings(each, name or key)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, name)


def placeholders(template: Json) -> set[str]:
    """Returns the names of the placeholders of a template."""
    found = (_PLACEHOLDER.fullmatch(text) for _, text in _strings(template))
    return {match[1] for match in found if match}


def fill(template: Json, values: Mapping[str, Json]) -> Json:
    """Returns the template with its placeholders replaced. A placeholder is a whole string, such as
    "{prompt}"."""
    if isinstance(template, dict):
        return {key: fill(item, values) for key, item in template.items()}
    if isinstance(template, list):
        return [fill(item, values) for item in template]
    match = _PLACEHOLDER.fullmatch(template) if isinstance(template, str) else None
    return values.get(match[1], template) if match else template


def names_of(roles: Sequence[str]) -> list[str]:
    """Returns the placeholder that stands for each picture of a request."""
    references = iter(_REFERENCES)
    return [next(references, "") if role == "reference" else role for role in roles]


def check_pictures(workflow: Workflow, names: Sequence[str]) -> None:
    """Raises ProviderFailed if the workflow takes a picture that the request doesn't bring."""
    if lacking := sorted(name for name in workflow.used - {*_WORDS} if name not in names):
        count = len([name for name in workflow.used if name in _REFERENCES])
        raise ProviderFailed(
            rules.BAD_INPUT,
            f"workflow {workflow.name} takes {count} reference pictures, and"
            f" {len(names)} came with the request; give {', '.join(lacking)} as well",
        )


def words(request: PictureRequest, seed: int, shape: tuple[int, int] | None) -> dict[str, Json]:
    """Returns what the placeholders besides pictures stand for. `shape`: width and height of the
    first picture, which the result has where no ratio was asked for."""
    across, down = (
        map(int, request.aspect_ratio.split(":")) if request.aspect_ratio else shape or (1, 1)
    )
    scale = _LONGER_SIDES[request.resolution] / max(across, down)
    width, height = (max(_STEP, round(each * scale / _STEP) * _STEP) for each in (across, down))
    return {
        "prompt": instructions.picture(request),
        "style": request.style,
        "seed": seed,
        "width": width,
        "height": height,
        "aspect_ratio": request.aspect_ratio,
        "resolution": request.resolution,
    }
