"""Reads YAML that people submit: only plain tables, lists, text and numbers."""

from typing import Any

import yaml

_MOST_BYTES = 1_000_000
_MOST_DEEP = 8


class NotPlain(ValueError):
    """The text is no YAML, or does more than state values; the message says where and why."""


def load(text: str | bytes) -> Any:
    """Returns the value of a YAML text. Raises NotPlain for more than 1 MB, aliases, anchors, tags,
    merge keys, repeated keys, more than 8 levels and several documents."""
    size = len(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    if size > _MOST_BYTES:
        raise NotPlain(f"{size} bytes; at most {_MOST_BYTES} are read")
    try:
        _refuse_tricks(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader: builds plain values only
    except NotPlain:
        raise
    # ValueError is raised for invalid UTF-8 and for impossible dates.
    except (yaml.YAMLError, ValueError) as error:
        raise NotPlain(f"not readable as YAML: {' '.join(str(error).split())[:200]}") from None


def _refuse_tricks(text: str | bytes) -> None:
    """Checks the parser's events before any value is built. Raises NotPlain.

    An alias can stand for a subtree, so a small file may expand without bound; deep nesting
    exhausts the stack of the recursive builder. Neither is needed here.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise NotPlain(f"line {line}: aliases and anchors are not read")
        if getattr(event, "tag", None) is not None:
            raise NotPlain(f"line {line}: tags are not read")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_DEEP:
                raise NotPlain(f"line {line}: nested more than {_MOST_DEEP} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Loader(yaml.CSafeLoader):
    """Builds plain values. A repeated key is an error; the base class would silently keep the last
    one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise NotPlain(f"line {line}: a key must be plain text")
            if key.value == "<<":
                raise NotPlain(f"line {line}: merge keys are not read")
            if key.value in seen:
                raise NotPlain(f"line {line}: {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)
