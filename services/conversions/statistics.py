"""StatisticsService: figures of jobs and generations, for owners and for admins."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from atelier.conversions.v1 import statistics_pb2 as pb
from atelier.conversions.v1 import statistics_pb2_grpc

from services.conversions import assets, rules, statistics_rows
from services.conversions.job_kinds import BY_NUMBER, KINDS
from services.conversions.statistics_rows import (
    Adoption,
    DatasetRuns,
    Figures,
    Reader,
    Result,
    Volume,
)
from shared.database.db import Database
from shared.rpc import auth, calls, errors
from shared.rpc.calls import Peers
from shared.rpc.protos import EnumNames, time_of, timestamp
from shared.rpc.server import Context

_DAYS = 30
_PERIODS = EnumNames(pb.StatisticsPeriod, "STATISTICS_PERIOD_")
FEATURES = EnumNames(pb.JobFeature, "JOB_FEATURE_")
_MOST = 20


class StatisticsService(statistics_pb2_grpc.StatisticsServiceServicer):
    def __init__(self, db: Database, peers: Peers) -> None:
        self._db = db
        self._peers = peers

    async def GetJobStatistics(
        self, request: pb.GetJobStatisticsRequest, context: Context
    ) -> pb.GetJobStatisticsResponse:
        owner = statistics_rows.named(request.owner)
        job = BY_NUMBER[request.kind].table.name if request.kind else ""
        async with self._reading(owner, {**_span(request, rules.MOST_DAYS), "job": job}) as read:
            total, *by_type = await read.all(statistics_rows.SELECT_FIGURES)
            features = await read.all(statistics_rows.SELECT_FEATURES)
            costs = await read.all(
                statistics_rows.SELECT_COSTS_BY_ACTOR
                if owner
                else statistics_rows.SELECT_COSTS_BY_OWNER
            )
        return pb.GetJobStatisticsResponse(
            total=_figures(total),
            by_type=map(_figures, by_type),
            features=[_adoption(row, total.jobs) for row in features],
            costs=[pb.JobCost(**asdict(row)) for row in costs],
        )

    async def GetGenerationStatistics(
        self, request: pb.GetGenerationStatisticsRequest, context: Context
    ) -> pb.GetGenerationStatisticsResponse:
        owner = statistics_rows.named(request.owner)
        period = _PERIODS.word.get(request.period, "day")
        span = _span(request, rules.MOST_DAYS if period != "day" else rules.MOST_DAYS_BY_DAY)
        async with self._reading(owner, {**span, "most": request.most or _MOST}) as read:
            volume = await read.all(statistics_rows.SELECT_VOLUME, period=period)
            prompts = await read.all(statistics_rows.SELECT_PROMPTS)
            datasets = await read.all(statistics_rows.SELECT_DATASETS)
            patterns = await read.all(statistics_rows.SELECT_PATTERNS)
        return pb.GetGenerationStatisticsResponse(
            volume=map(_volume, volume),
            prompts=[pb.PopularPrompt(**asdict(row)) for row in prompts],
            datasets=await self._effectiveness(owner, span, datasets),
            patterns=[pb.UsagePattern(**asdict(row)) for row in patterns],
        )

    @asynccontextmanager
    async def _reading(self, owner: str, parameters: dict[str, object]) -> AsyncIterator[Reader]:
        """Opens a transaction that reads figures: an admin's across owners, an owner's under its
        own policies."""
        is_admin = auth.current().role == "admin"
        async with self._db.transaction("" if is_admin else owner) as m:
            if is_admin:
                await statistics_rows.operate(m)
            yield Reader(m, owner, parameters)

    async def _effectiveness(
        self, owner: str, span: dict[str, object], datasets: Sequence[DatasetRuns]
    ) -> list[pb.DatasetEffectiveness]:
        """Returns the figures of datasets; of one owner with how many of the results are kept."""
        if not owner or not datasets:
            return [_dataset(row) for row in datasets]
        ids = [row.dataset_id for row in datasets]
        results = await statistics_rows.results(self._db, owner, span, ids)
        there = await self._that_are_there(owner, results)
        checked = Counter(each.dataset_id for each in results)
        kept = Counter(each.dataset_id for each in results if str(each.asset_id) in there)
        return [
            _dataset(row, kept=kept[row.dataset_id], checked=checked[row.dataset_id])
            for row in datasets
        ]

    async def _that_are_there(self, owner: str, results: Sequence[Result]) -> set[str]:
        """Returns the ids of the pictures that weren't deleted. Looks them up as their owner sees
        them, in a task of its own: an admin sees none."""

        async def look() -> set[str]:
            if auth.current().owner != owner:
                auth.enter(calls.owner_identity(owner))
            found = await self._peers.assets(str(each.asset_id) for each in results)
            return {asset_id for asset_id, asset in found.items() if assets.is_there(asset)}

        return await asyncio.create_task(look())


def _span(
    request: pb.GetJobStatisticsRequest | pb.GetGenerationStatisticsRequest, most_days: int
) -> dict[str, object]:
    """Returns the time that a request is about. Raises INVALID_ARGUMENT if it ends before it
    begins, or is longer than `most_days`."""
    before = time_of(
        request.created_before, request.HasField("created_before"), "created_before"
    ) or datetime.now(UTC)
    first = time_of(request.created_from, request.HasField("created_from"), "created_from")
    if first is None:
        first = before - min(timedelta(days=_DAYS), before - datetime.min.replace(tzinfo=UTC))
    if first > before:
        raise errors.invalid("created_from", "comes after created_before")
    if before - first > timedelta(days=most_days):
        text = f"is more than {most_days} days before created_before; ask for less, or by month"
        raise errors.invalid("created_from", text)
    return {"created_from": first, "created_before": before}


def _figures(row: Figures) -> pb.JobFigures:
    ended = row.completed + row.failed
    return pb.JobFigures(
        kind=KINDS[row.job].number if row.job else None,
        type=row.type,
        jobs=row.jobs,
        pending=row.pending,
        processing=row.processing,
        completed=row.completed,
        failed=row.failed,
        cancelled=row.cancelled,
        success_rate=row.completed / ended if ended else None,
        average_time_ms=row.average_ms,
        p95_time_ms=row.p95_ms,
        credits=row.credits,
    )


def _volume(row: Volume) -> pb.GenerationVolume:
    return pb.GenerationVolume(
        start_time=timestamp(row.start),
        generations=row.generations,
        completed=row.completed,
        failed=row.failed,
        credits=row.credits,
    )


def _adoption(row: Adoption, jobs: int) -> pb.FeatureAdoption:
    return pb.FeatureAdoption(
        feature=FEATURES.number[row.feature],
        jobs=row.jobs,
        share=row.jobs / max(jobs, row.jobs),  # one more may have come since the total
        owners=row.owners,
    )


def _dataset(
    row: DatasetRuns, *, kept: int | None = None, checked: int = 0
) -> pb.DatasetEffectiveness:
    per_run = row.completed / row.runs
    return pb.DatasetEffectiveness(
        dataset_id=row.dataset_id,
        dataset_name=row.dataset_name,
        owner=row.owner,
        runs=row.runs,
        completed=row.completed,
        completed_per_run=per_run,
        kept=kept,
        checked=checked,
        kept_per_run=per_run * (kept or 0) / checked if checked else None,
        credits=row.credits,
    )
