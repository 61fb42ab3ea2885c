"""The three kinds of jobs, for code that serves a job of any kind."""

from collections.abc import Mapping
from typing import Any

from services.conversions import analysis_rows, conversion_rows, generation_rows
from services.conversions.job_rows import JobKind, ModelJob
from shared.database.db import Database
from shared.rpc import errors

# A kind is typed by its row class. These mappings lose that type, so code that takes a kind from
# here annotates its rows as ModelJob.
AnyKind = JobKind[Any, Any]

KINDS: Mapping[str, AnyKind] = {
    kind.table.name: kind
    for kind in (conversion_rows.KIND, generation_rows.KIND, analysis_rows.KIND)
}
BY_NUMBER: Mapping[int, AnyKind] = {kind.number: kind for kind in KINDS.values()}


async def get(db: Database, job_id: str) -> tuple[AnyKind, ModelJob]:
    """Returns the row of the caller's job, of any kind. Raises NOT_FOUND."""
    for kind in KINDS.values():
        row: ModelJob | None = await kind.find(db, job_id)
        if row is not None:
            return kind, row
    raise errors.not_found("job", job_id)
