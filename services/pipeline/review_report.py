"""The review report: load and misses per threshold, counted by the database from rated results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from atelier.pipeline.v1 import review_desk_pb2 as pb

from services.pipeline import reviewing
from services.pipeline.reviewing import THRESHOLDS, Passed
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth, errors

_MOST_GROUPS = 50


@dataclass(slots=True)
class _Figures:
    """The figures of a threshold for one phase and provider; for all, without both."""

    phase: int | None
    provider: str | None
    threshold: float
    results: int
    decided: int
    passed: int
    confident: int
    checked: int
    wrong: int
    sampled: int
    sampled_wrong: int


_THRESHOLDS = ", ".join(f"({n}, {value})" for n, value in enumerate(THRESHOLDS, start=1))
_EDGES = ", ".join(map(str, THRESHOLDS))
_SUMS = """
    t.threshold, coalesce(sum(number), 0)::bigint AS results,
        coalesce(sum(number) FILTER (WHERE verdict <> ''), 0)::bigint AS decided,
        coalesce(sum(number) FILTER (WHERE reached >= t.n), 0)::bigint AS passed,
        coalesce(sum(number) FILTER (WHERE reached >= t.n AND confident), 0)::bigint AS confident,
        coalesce(sum(number) FILTER (WHERE reached >= t.n AND verdict <> ''), 0)::bigint AS checked,
        coalesce(sum(number) FILTER (WHERE reached >= t.n AND verdict = 'wrong'), 0)::bigint
            AS wrong,
        coalesce(sum(number) FILTER (WHERE reached >= t.n AND confident AND verdict <> ''),
            0)::bigint AS sampled,
        coalesce(sum(number) FILTER (WHERE reached >= t.n AND confident AND verdict = 'wrong'),
            0)::bigint AS sampled_wrong
"""


def _statement(whose: str) -> Statement[_Figures]:
    """Results are first counted by how many thresholds they reach; everything else adds those
    counts up."""
    return Statement(
        _Figures,
        f"""
        WITH counted AS (
            SELECT phase, provider, confident, verdict, count(*) AS number, width_bucket(confidence,
                ARRAY[{_EDGES}]::double precision[]) AS reached
            FROM rated_results
            WHERE {whose}
                AND created_at >= coalesce(%(created_from)s::timestamptz, '-infinity')
                AND created_at < coalesce(%(created_before)s::timestamptz, 'infinity')
                AND (%(phase)s::int = 0 OR phase = %(phase)s)
                AND (%(provider)s::text = '' OR provider = %(provider)s)
            GROUP BY phase, provider, confident, verdict, reached
        ), largest AS (
            SELECT phase, provider, sum(number) AS size FROM counted GROUP BY phase, provider
            ORDER BY size DESC, phase, provider LIMIT {_MOST_GROUPS}
        ), t AS (
            SELECT n, threshold FROM (VALUES {_THRESHOLDS}) AS v (n, threshold)
        ), figures AS (
            SELECT NULL::smallint AS phase, NULL::text AS provider, NULL::numeric AS size, {_SUMS}
            FROM t LEFT JOIN counted ON true GROUP BY t.threshold
            UNION ALL
            SELECT phase, provider, size, {_SUMS}
            FROM t CROSS JOIN counted JOIN largest USING (phase, provider)
            GROUP BY phase, provider, size, t.threshold
        )
        SELECT phase, provider, threshold::double precision AS threshold, results, decided, passed,
            confident, checked, wrong, sampled, sampled_wrong
        FROM figures ORDER BY size DESC NULLS FIRST, phase, provider, threshold
        """,
    )


_SELECT_OF_OWNER = _statement("owner = %(owner)s")
_SELECT_OF_ALL = _statement("true")


async def read(db: Database, owner: str, about: Mapping[str, object]) -> pb.GetReviewReportResponse:
    """Returns the report about the owner, or about all if `owner` is '' and the caller an admin.
    Raises NOT_FOUND if the caller may not read the owner's."""
    identity = auth.current()
    is_admin = identity.role == "admin"
    if not is_admin and owner not in ("", identity.owner):
        raise errors.not_found("owner", owner)
    of = owner if is_admin else identity.owner
    async with db.transaction("" if is_admin else of) as m:
        if is_admin:
            m.operate()
        rows = await m.all(_SELECT_OF_OWNER if of else _SELECT_OF_ALL, {**about, "owner": of})
    total, *groups = [
        _figures(list(same)) for _, same in groupby(rows, key=lambda row: (row.phase, row.provider))
    ]
    return pb.GetReviewReportResponse(total=total, by_provider=groups)


def _figures(rows: Sequence[_Figures]) -> pb.ReviewFigures:
    """Returns the figures of one phase and provider, from a row per threshold."""
    first = rows[0]
    return pb.ReviewFigures(
        phase=first.phase or 0,
        provider=first.provider or "",
        results=first.results,
        decided=first.decided,
        thresholds=map(_threshold, rows),
    )


def _threshold(row: _Figures) -> pb.ThresholdFigures:
    of = Passed(row.passed, row.confident, row.checked, row.wrong, row.sampled, row.sampled_wrong)
    reviewed = row.results - row.passed
    return pb.ThresholdFigures(
        threshold=row.threshold,
        reviewed=reviewed,
        load=reviewed / row.results if row.results else None,
        passed=row.passed,
        checked=row.checked,
        wrong=row.wrong,
        sampled=row.sampled,
        sampled_wrong=row.sampled_wrong,
        miss_rate=reviewing.miss_rate(of),
        caution=reviewing.caution(of),
    )
