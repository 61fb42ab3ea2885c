"""Which duty of disclosure follows from a picture's lineage. Knows no machinery.

Article 50 of Regulation (EU) 2024/1689: paragraph 2 wants what an AI system generated or
manipulated to be marked; paragraph 4 wants deep fakes to be disclosed. Article 3(60): a deep fake
resembles existing persons, objects, places, entities or events, and would falsely appear to be
authentic. What a picture shows isn't known here, so that one made from photographs may be one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.conversions import rules

TRAINED_MODEL = "trained_model"
PERSON = "person"
PHOTOGRAPH = "photograph"
ORIGIN_UNKNOWN = "origin_unknown"
GONE = "gone"

NONE_FOUND = "none_found"
MARK = "mark"
DISCLOSE = "disclose"

_TEXTS = {
    TRAINED_MODEL: "a trained model made this picture or had a part in it ({type})",
    PERSON: "it is a photograph of a person, who may be recognised in what was made from it",
    PHOTOGRAPH: "no model is known to have made it, so that what was made from it may resemble"
    " something that exists",
    ORIGIN_UNKNOWN: "nobody said where its pixels come from",
    GONE: "it was deleted or isn't yours any more, so that its origin can't be read",
}


@dataclass(frozen=True)
class Source:
    """A picture of the lineage. `roles`: what it was for the jobs that used it. `is_person`: it was
    uploaded as a photograph of a person. `made_here`: a job of the owner made it. `gone`: nothing
    else is known of it."""

    asset_id: str
    roles: frozenset[str] = frozenset()
    source_type: str = ""
    is_person: bool = False
    made_here: bool = False
    gone: bool = False


@dataclass(frozen=True)
class Cause:
    cause: str
    asset_id: str
    text: str


def causes(picture: Source, made_from: Iterable[Source]) -> list[Cause]:
    """Returns what a duty may follow from: first of the picture itself."""
    found = _causes_of(picture, is_input=False)
    for each in made_from:
        found += _causes_of(each, is_input=True)
    return found


def duty(found: Sequence[Cause]) -> str:
    """Returns the furthest duty that may follow."""
    names = {each.cause for each in found}
    if TRAINED_MODEL not in names:
        return NONE_FOUND
    # A picture that is gone may have been a photograph.
    return DISCLOSE if names & {PERSON, PHOTOGRAPH, GONE} else MARK


def _causes_of(source: Source, *, is_input: bool) -> list[Cause]:
    names = []
    if source.gone:
        names.append(GONE)
    if source.source_type in rules.TRAINED_SOURCES:
        names.append(TRAINED_MODEL)
    elif not source.source_type and not source.gone:
        names.append(ORIGIN_UNKNOWN)
    if source.is_person or "user" in source.roles:
        names.append(PERSON)
    elif is_input and not source.gone and not source.made_here and TRAINED_MODEL not in names:
        names.append(PHOTOGRAPH)
    return [
        Cause(name, source.asset_id, _TEXTS[name].format(type=source.source_type)) for name in names
    ]
