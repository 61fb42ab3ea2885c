"""What is known about a product when a phase begins: what this service's runner and outside runners
are given."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.pipeline import product_rows, result_rows, review_rows, rules
from services.pipeline.phase_rows import Phase
from services.pipeline.product_rows import IMAGES, Product, ProductImage
from services.pipeline.result_rows import RESULTS, Result
from shared.database.db import Mutation
from shared.database.rows import Statement

_SELECT_IMAGES = Statement(
    ProductImage,
    f"""
    SELECT {IMAGES.columns} FROM product_images WHERE product_id = %(id)s
    ORDER BY is_primary DESC, position
""",
)
# A result of the phase itself, or of a later one, is of an earlier run: it is no fact of this one.
_SELECT_RESULTS = Statement(
    Result,
    f"""
    SELECT {RESULTS.columns} FROM results
    WHERE product_id = %(id)s AND phase < %(number)s ORDER BY phase
    """,
)


@dataclass(frozen=True)
class PhaseInputs:
    """What is known about a product when a phase begins."""

    product: Product
    images: Sequence[ProductImage]  # primary first
    results: Sequence[Result]  # of the phases before, in order
    said: rules.ByPhase  # what people said in reviews of this phase and those before

    def facts(self) -> dict[str, Any]:
        """Returns the facts that the phase is given, in the plain form of shared.formats.facts."""
        values = {row.phase: row.value[result_rows.VALUES[row.phase]] for row in self.results}
        for row in self.results:
            if row.phase == 1:  # what the owner stated anew since counts
                # A person's decision already minds what was stated before it.
                since = row.updated_at if row.source == "reviewer" else row.inputs_at
                values[1] = rules.without(values[1], self._restated_since(since))
        return rules.facts_for(self.product, values, self.said)

    def _restated_since(self, at: datetime) -> Sequence[str]:
        return rules.restated_since(self.product.restated, at)


async def read(m: Mutation, phase: Phase) -> PhaseInputs:
    """Reads the inputs of a phase of the transaction's owner."""
    mine = {"id": phase.product_id, "number": phase.number}
    product = await m.one(product_rows.SELECT_PRODUCT, mine)
    images = await m.all(_SELECT_IMAGES, mine)
    results = await m.all(_SELECT_RESULTS, mine)
    edits = await review_rows.edits(m, phase.product_id)
    said = {number: fields for number, fields in edits.items() if number <= phase.number}
    return PhaseInputs(product, images, results, said)
