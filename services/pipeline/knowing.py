"""What is known about a product when a phase ends, with who says it."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from services.pipeline import rules, sources
from services.pipeline.sources import Finding
from shared.database.db import Mutation
from shared.database.exchange import Reply
from shared.database.rows import Statement


@dataclass(slots=True)
class _Sources:
    """What the caller stated about a product, and what its phases found, by their numbers."""

    name: str
    model: str
    condition: str
    condition_details: str
    facts: dict[str, Any]
    findings: dict[str, list[Finding]]


_SELECT_SOURCES = Statement(
    _Sources,
    """
    SELECT name, model, condition, condition_details, facts, COALESCE(
        (SELECT jsonb_object_agg(phase, findings) FROM results WHERE product_id = %(id)s),
        '{}') AS findings
    FROM products WHERE id = %(id)s
""",
)


def ask(m: Mutation, product_id: UUID) -> Reply[_Sources]:
    """Asks for what `known` needs, in the round trip of the next statement."""
    return m.ask(_SELECT_SOURCES, {"id": product_id})


def known(asked: Reply[_Sources], number: int, said: rules.ByPhase) -> sources.Known:
    """Returns what is known beside what phase `number` itself finds. `asked` has arrived."""
    [row] = asked.rows()
    found = {int(phase): findings for phase, findings in row.findings.items()}
    return sources.known(row, number, found, said)
