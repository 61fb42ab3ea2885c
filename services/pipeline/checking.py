"""Checks a phase's value that an outside worker or a reviewer gives."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atelier.pipeline.v1 import result_pb2

from services.pipeline import result_rows, rules
from services.pipeline.phase_rows import Phase
from shared.database.db import Mutation
from shared.database.rows import Statement
from shared.rpc import errors
from shared.rpc.protos import facts as check_facts
from shared.rpc.protos import facts_message


@dataclass(slots=True)
class _Stated:
    """What the caller stated about a product."""

    name: str
    model: str
    condition: str
    condition_details: str
    facts: dict[str, Any]


_SELECT_STATED = Statement(
    _Stated,
    "SELECT name, model, condition, condition_details, facts FROM products WHERE id = %(id)s",
)


def stored_value(value: result_pb2.PhaseValue, number: int, field: str) -> dict[str, Any]:
    """Returns a PhaseValue as JSON. Raises INVALID_ARGUMENT on `field` if it doesn't belong to
    phase `number` or is larger than rules.VALUE_BYTES."""
    kind = result_rows.VALUES[number]
    if value.WhichOneof("value") != kind:
        raise errors.invalid(field, f"phase {number} ({rules.PHASE_NAMES[number]}) needs {kind}")
    made = result_rows.plain(value)
    size = len(json.dumps(made, ensure_ascii=False).encode())
    if size > rules.VALUE_BYTES:
        raise errors.invalid(field, f"is {size} bytes as JSON; the limit is {rules.VALUE_BYTES}")
    return made


async def check_usable(
    m: Mutation,
    phase: Phase,
    value: Mapping[str, Any],
    field: str,
    said: Mapping[str, Any] | None = None,
) -> None:
    """Raises INVALID_ARGUMENT on `field` if the phases that build on this value would refuse it as
    facts. `said`: the fields that a reviewer decided on."""
    product = await m.one(_SELECT_STATED, {"id": phase.product_id})
    kind = result_rows.VALUES[phase.number]
    made = rules.facts_for(product, {phase.number: value[kind]}, {phase.number: said or {}})
    check_facts(facts_message(made), field)
