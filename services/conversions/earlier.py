"""Answers a request from the result of an equal one, at no cost.

Equal is what has the same recipe digest (rules.recipe_digest) and was made by the model that would
run the request now. What decides is `answer`, when the row is created: the new row is COMPLETED
from the start, so that nothing is queued, run or charged.
"""

from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from services.conversions import assets
from services.conversions.job_kinds import KINDS, AnyKind
from services.conversions.job_rows import ModelJob, PictureJob
from services.conversions.providers.routes import Candidate
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth
from shared.rpc.calls import Peers

# The newest completed row of an equal recipe. The conditions are those of the index <table>_recipe.
_SELECT_EQUAL: dict[str, Statement[Any]] = {
    name: Statement(
        kind.table.row,
        f"""
        SELECT {kind.table.columns} FROM {name}
        WHERE owner = %(owner)s AND recipe_digest = ANY(%(digests)s)
            AND (recipe_digest = %(digest)s OR recipe ->> 'seed' = %(seed)s)
            AND state = 'completed' AND answered_from IS NULL AND NOT external
            AND deleted_at IS NULL
            AND COALESCE(recipe ->> 'provider', recipe ->> 'model') = %(provider)s
            AND %(model)s IN (recipe ->> 'model',
                (recipe ->> 'model') || ' ' || (recipe ->> 'model_version'))
        ORDER BY created_at DESC, id DESC LIMIT 1
        """,
    )
    for name, kind in KINDS.items()
}


class Recipe(NamedTuple):
    """The recipe of a request, as digests. `unseeded`: the same without the seed that it asks for,
    since an equal request without a seed may have derived just that one."""

    digest: str
    unseeded: str = ""
    seed: int | None = None


async def answer(
    db: Database, peers: Peers, kind: AnyKind, model: Candidate, recipe: Recipe
) -> dict[str, object]:
    """Returns the columns of a new row that an earlier result answers; none if there is no such
    result, or its picture was deleted."""
    wanted = {
        "owner": auth.current().owner,
        "digests": [recipe.digest, recipe.unseeded or recipe.digest],
        "digest": recipe.digest,
        "seed": "" if recipe.seed is None else str(recipe.seed),
        "provider": model.provider,
        "model": model.model,
    }
    row: ModelJob | None = await db.first(_SELECT_EQUAL[kind.table.name], wanted)
    if row is None or not await _is_there(peers, row):
        return {}
    return {
        **row.result_columns(),
        "state": "completed",
        "progress": 1.0,
        "recipe": Jsonb(row.recipe),
        "evidence": Jsonb(row.evidence),
        "confidence": row.confidence,
        "answered_from": row.id,
    }


async def _is_there(peers: Peers, row: ModelJob) -> bool:
    if not isinstance(row, PictureJob):
        return True
    result = str(row.result_asset_id)
    return assets.is_there((await peers.assets([result])).get(result))
