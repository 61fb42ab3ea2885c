"""Texts from elsewhere, as Postgres can store them."""

from typing import Any


def storable(text: str) -> str:
    """Returns a text without what can't be stored: characters NUL and halves of surrogate pairs."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


def storable_json(value: Any) -> Any:  # Any: whatever JSON can hold
    """Returns a value of JSON with its texts as `storable` returns them."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(str(key)): storable_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [storable_json(each) for each in value]
    return value
