"""Statistics: the rows that figures come from, and the statements that count them.

Triggers keep one narrow row per job (`counted_jobs` in tables.sql), so that counting reads no
prompt, recipe or evidence. A statement counts the jobs of one owner, or of all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from shared.database.db import Database, Mutation
from shared.database.rows import Statement
from shared.rpc import auth, errors

R = TypeVar("R")

MOST_COSTS = 100
MOST_CHECKED = 1000
MOST_VALUES = 20
_WITHIN = "created_at >= %(created_from)s AND created_at < %(created_before)s"
_GENERATIONS = f"{_WITHIN} AND job = 'generations'"


class PerOwner(Generic[R]):
    """A statement about one owner, and the same about all: `{whose}` in the text is the condition
    that selects the owner's rows."""

    def __init__(self, row: type[R], text: str) -> None:
        self._of_owner = Statement(row, text.replace("{whose}", "owner = %(owner)s"))
        self._of_all = Statement(row, text.replace("{whose}", "true"))

    def of(self, owner: str) -> Statement[R]:
        return self._of_owner if owner else self._of_all


@dataclass(slots=True)
class Figures:
    """The figures of the jobs of one table and type; of all jobs, without both."""

    job: str | None
    type: str | None
    jobs: int
    pending: int
    processing: int
    completed: int
    failed: int
    cancelled: int
    average_ms: float | None
    p95_ms: int | None
    credits: int


@dataclass(slots=True)
class Adoption:
    feature: str
    jobs: int
    owners: int


@dataclass(slots=True)
class Cost:
    owner: str
    created_by: str
    jobs: int
    completed: int
    credits: int


@dataclass(slots=True)
class Volume:
    start: datetime
    generations: int
    completed: int
    failed: int
    credits: int


@dataclass(slots=True)
class Prompt:
    prompt: str
    generations: int
    completed: int
    owners: int
    credits: int


@dataclass(slots=True)
class DatasetRuns:
    owner: str
    dataset_id: str
    dataset_name: str
    runs: int
    completed: int
    credits: int


@dataclass(slots=True)
class Pattern:
    setting: str
    value: str
    generations: int
    share: float


@dataclass(slots=True)
class Result:
    """A picture that was made in a dataset."""

    dataset_id: str
    asset_id: UUID | None  # never None of a completed generation


# Jobs are grouped by hash first, with their times, and then by type: an aggregate that sorts, such
# as percentile_cont or count(DISTINCT ...), would sort every job. Jobs that were answered from an
# earlier result took no time.
SELECT_FIGURES = PerOwner(
    Figures,
    f"""
    WITH counted AS (
        SELECT job, type, state, processing_time_ms AS ms, count(*) AS number,
            sum(credits) AS credits, state = 'completed' AND processing_time_ms > 0 AS timed
        FROM counted_jobs
        WHERE {{whose}} AND {_WITHIN} AND (%(job)s::text = '' OR job = %(job)s)
        GROUP BY job, type, state, ms
    ), ordered AS (
        SELECT job, type, ms, sum(number) OVER (ORDER BY ms) AS up_to, sum(number) OVER () AS timed,
            sum(number) OVER (PARTITION BY job, type ORDER BY ms) AS up_to_in_type,
            sum(number) OVER (PARTITION BY job, type) AS timed_in_type
        FROM counted WHERE timed
    ), p95 AS (
        SELECT job, type, min(ms) AS ms FROM ordered
            WHERE up_to_in_type >= 0.95 * timed_in_type GROUP BY job, type
        UNION ALL SELECT NULL, NULL, min(ms) FROM ordered WHERE up_to >= 0.95 * timed
    ), figures AS (
        SELECT job, type, coalesce(sum(number), 0)::bigint AS jobs,
            coalesce(sum(number) FILTER (WHERE state = 'pending'), 0)::bigint AS pending,
            coalesce(sum(number) FILTER (WHERE state = 'processing'), 0)::bigint AS processing,
            coalesce(sum(number) FILTER (WHERE state = 'completed'), 0)::bigint AS completed,
            coalesce(sum(number) FILTER (WHERE state = 'failed'), 0)::bigint AS failed,
            coalesce(sum(number) FILTER (WHERE state = 'cancelled'), 0)::bigint AS cancelled,
            (sum(ms * number) FILTER (WHERE timed)
                / sum(number) FILTER (WHERE timed))::double precision AS average_ms,
            coalesce(sum(credits), 0)::bigint AS credits
        FROM counted GROUP BY GROUPING SETS ((), (job, type))
    )
    SELECT f.job, f.type, f.jobs, f.pending, f.processing, f.completed, f.failed, f.cancelled,
        f.average_ms, p.ms AS p95_ms, f.credits
    FROM figures f LEFT JOIN p95 p ON (p.job, p.type) IS NOT DISTINCT FROM (f.job, f.type)
    ORDER BY f.job NULLS FIRST, f.type
    """,
)
SELECT_FEATURES = PerOwner(
    Adoption,
    f"""
    SELECT feature, sum(number)::bigint AS jobs, count(DISTINCT owner) AS owners
    FROM (
        SELECT owner, features, count(*) AS number FROM counted_jobs
        WHERE {{whose}} AND {_WITHIN} AND (%(job)s::text = '' OR job = %(job)s)
        GROUP BY owner, features
    ) AS counted CROSS JOIN unnest(features) AS used (feature)
    GROUP BY feature ORDER BY jobs DESC, feature
    """,
)
_COST = f"""
    count(*) AS jobs, count(*) FILTER (WHERE state = 'completed') AS completed,
        sum(credits)::bigint AS credits
    FROM counted_jobs
    WHERE {{whose}} AND {_WITHIN} AND (%(job)s::text = '' OR job = %(job)s)
"""
SELECT_COSTS_BY_OWNER = PerOwner(
    Cost,
    f"""
    SELECT owner, '' AS created_by, {_COST}
    GROUP BY owner ORDER BY credits DESC, jobs DESC, owner LIMIT {MOST_COSTS}
    """,
)
SELECT_COSTS_BY_ACTOR = PerOwner(
    Cost,
    f"""
    SELECT owner, created_by, {_COST}
    GROUP BY owner, created_by ORDER BY credits DESC, jobs DESC, created_by LIMIT {MOST_COSTS}
    """,
)
SELECT_VOLUME = PerOwner(
    Volume,
    f"""
    SELECT date_trunc(%(period)s, created_at) AS start, count(*) AS generations,
        count(*) FILTER (WHERE state = 'completed') AS completed,
        count(*) FILTER (WHERE state = 'failed') AS failed, sum(credits)::bigint AS credits
    FROM counted_jobs WHERE {{whose}} AND {_GENERATIONS} GROUP BY start ORDER BY start
    """,
)
SELECT_PROMPTS = PerOwner(
    Prompt,
    f"""
    SELECT prompt, sum(number)::bigint AS generations, sum(completed)::bigint AS completed,
        count(*) AS owners, sum(credits)::bigint AS credits
    FROM (
        SELECT prompt, owner, count(*) AS number, sum(credits) AS credits,
            count(*) FILTER (WHERE state = 'completed') AS completed
        FROM counted_jobs WHERE {{whose}} AND {_GENERATIONS} AND prompt <> ''
        GROUP BY prompt, owner
    ) AS counted GROUP BY prompt ORDER BY generations DESC, prompt LIMIT %(most)s
    """,
)
SELECT_DATASETS = PerOwner(
    DatasetRuns,
    f"""
    SELECT owner, dataset_id, count(*) AS runs,
        coalesce((array_agg(dataset_name ORDER BY created_at DESC)
            FILTER (WHERE dataset_name <> ''))[1], '') AS dataset_name,
        count(*) FILTER (WHERE state = 'completed') AS completed, sum(credits)::bigint AS credits
    FROM counted_jobs WHERE {{whose}} AND {_GENERATIONS} AND dataset_id <> ''
    GROUP BY owner, dataset_id ORDER BY runs DESC, dataset_id LIMIT %(most)s
    """,
)
SELECT_PATTERNS = PerOwner(
    Pattern,
    f"""
    SELECT setting, value, generations, generations::double precision / sum(generations)
        OVER (PARTITION BY setting) AS share
    FROM (
        SELECT setting, value, sum(number)::bigint AS generations, row_number()
            OVER (PARTITION BY setting ORDER BY sum(number) DESC, value) AS place
        FROM (
            SELECT type, style, aspect_ratio, quality, format, resolution,
                extract(hour FROM created_at)::text AS hour,
                extract(isodow FROM created_at)::text AS weekday, count(*) AS number
            FROM counted_jobs WHERE {{whose}} AND {_GENERATIONS}
            GROUP BY type, style, aspect_ratio, quality, format, resolution, hour, weekday
        ) AS counted CROSS JOIN LATERAL (VALUES ('task', type), ('style', style),
            ('aspect_ratio', aspect_ratio), ('quality', quality), ('format', format),
            ('resolution', resolution), ('hour', hour), ('weekday', weekday)
        ) AS each (setting, value)
        GROUP BY setting, value
    ) AS ranked WHERE place <= {MOST_VALUES} ORDER BY setting, place
    """,
)
# Reads generations, so it is for one owner in whose tenant context it runs.
SELECT_RESULTS = Statement(
    Result,
    f"""
    SELECT dataset_id, result_asset_id AS asset_id FROM generations
    WHERE owner = %(owner)s AND {_WITHIN} AND dataset_id = ANY(%(dataset_ids)s)
        AND dataset_name <> '' AND state = 'completed'
    ORDER BY created_at DESC, id DESC LIMIT {MOST_CHECKED}
    """,
)


def named(owner: str) -> str:
    """Returns the owner whose figures a request is about; '' for all owners. Raises NOT_FOUND if
    the request names another owner and the caller is no admin."""
    identity = auth.current()
    if identity.role == "admin":
        return owner
    if owner not in ("", identity.owner):
        raise errors.not_found("owner", owner)
    return identity.owner


class Reader:
    """Reads figures of `owner`, or of all owners if it is ''."""

    def __init__(self, m: Mutation, owner: str, parameters: Mapping[str, Any]) -> None:
        self._m = m
        self._owner = owner
        self._parameters = {**parameters, "owner": owner}

    async def all(self, statement: PerOwner[R], **more: object) -> list[R]:
        return await self._m.all(statement.of(self._owner), {**self._parameters, **more})


async def operate(m: Mutation) -> None:
    """Lets this transaction read the counted jobs of every owner."""
    m.send(b"SELECT set_config('app.operator', 'on', true)")


async def results(
    db: Database, owner: str, parameters: Mapping[str, Any], dataset_ids: list[str]
) -> list[Result]:
    """Returns the newest results of an owner in these datasets, at most 1,000."""
    async with db.transaction(owner) as m:
        return await m.all(
            SELECT_RESULTS, {**parameters, "owner": owner, "dataset_ids": dataset_ids}
        )
