"""B7: pages of long histories, and searches among many assets, compared with those of a thousand
rows.

It measures the service's own handler, from the request to the answer, with the service's own role,
row policies, tables and indexes; what gRPC adds is the same for each. All sizes share one table,
each with an owner of its own. Rounds alternate. The history has 10 million rows; there are a
million assets, each with a dozen term rows.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from atelier.assets.v1 import search_pb2, usage_pb2

from bench.figure import Figure, Report, Rounds
from bench.site import Site
from services.assets.core import asset_rows, history
from services.assets.core.bandwidth import Meter
from services.assets.core.usage_log import UsageLog
from services.assets.library import search
from shared.database.db import Database
from shared.rpc import auth, paging
from shared.settings import Settings
from shared.storage import open_disk, read_secret

SIZES = (1000, 1, 100_000, 10_000_000)  # the first is the reference
ASSETS = (1000, 1_000_000)  # the first is the reference
_ROUNDS = 41
_CALLS = 10
_CHUNK = 250_000  # rows per statement
_TARGET = 1.2
_NO_CONTEXT: Any = None  # the measured handlers don't use their context

# Ids like ours, times a millisecond apart, a hundred assets, one action in eight.
_HISTORY = """
    INSERT INTO assets.usage_events (id, owner, actor, asset_id, action, ip, user_agent, created_at)
    SELECT uuidv7(), 'user:' || {size}, 'ada', md5((n %% 100)::text)::uuid,
           ('{{upload,view,download,delete,update,share,convert,use_in_conversion}}'::text[])[1
               + n %% 8],
           '198.51.100.7', 'grpc-python', timestamptz '2026-01-01' + n * interval '1 millisecond'
    FROM generate_series({first}, {last}) AS n
"""
# Every size has full pages: 20 assets with the rare tag, 100 with each value of metadata.
_ASSETS = """
    INSERT INTO assets.assets (id, owner, created_by, kind, state, public, free, file_name,
        storage_key, size_bytes,
                               mime_type, sha256, tags, metadata, created_at)
    SELECT uuidv7(), 'user:' || {size}, 'ada', 'photo', 'ready', false, true, 'DSC_' || n
        || '.jpg', 'k', 1,
           'image/jpeg', 'ab',
           '{{all}}'::text[] || CASE WHEN n %% 2 = 0 THEN '{{half}}'::text[] ELSE '{{}}' END
               || CASE WHEN n %% ({size} / 20) = 7 THEN '{{rare}}'::text[] ELSE '{{}}' END,
           jsonb_build_object('shot', n %% ({size} / 100)), timestamptz '2026-01-01'
               + n * interval '1 millisecond'
    FROM generate_series({first}, {last}) AS n
"""
_TERMS = """
    INSERT INTO assets.asset_terms (owner, term, created_at, id)
    SELECT a.owner, term, a.created_at, a.id FROM assets.assets a CROSS
        JOIN LATERAL assets.asset_terms_of(a) AS term
    WHERE a.owner = 'user:' || {size} AND a.created_at BETWEEN
        timestamptz '2026-01-01' + {first} * interval '1 millisecond'
        AND timestamptz '2026-01-01' + {last} * interval '1 millisecond'
"""
_INDEXES = """
    SELECT indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'assets' AND tablename = 'usage_events' AND indexname <> 'usage_events_pkey'
"""
_PLACE = """
    SELECT created_at, id FROM assets.usage_events
    WHERE owner = %s AND created_at = timestamptz '2026-01-01' + %s * interval '1 millisecond'
"""


@dataclass(frozen=True)
class _Page:
    """One page of one owner, and the call that asks for it."""

    owner: str
    ask: Callable[[], Awaitable[Any]]


def pages(report: Report) -> list[Figure]:
    return asyncio.run(_pages(report))


async def _pages(report: Report) -> list[Figure]:
    with Site() as site:
        await asyncio.to_thread(_fill, site, report)
        db = Database(Settings(database_url=site.url("app")), "assets", pool_size=2)
        await db.open()
        try:
            return [*await _histories(site, db, report), *await _searches(site, db, report)]
        finally:
            await db.close()


def _fill(site: Site, report: Report) -> None:
    # The database is thrown away at the end: no need to wait for the disk.
    for setting in (
        "fsync = off",
        "synchronous_commit = off",
        "full_page_writes = off",
        "max_wal_size = '4GB'",
        "maintenance_work_mem = '512MB'",
    ):
        site.sql(f"ALTER SYSTEM SET {setting}")
    site.sql("SELECT pg_reload_conf()")
    indexes = site.sql(_INDEXES)
    for name, _definition in indexes:  # making them after the rows is faster
        site.sql(f"DROP INDEX assets.{name}")
    # The triggers work a row at a time; here the same function is used for many rows at once.
    site.sql("ALTER TABLE assets.assets DISABLE TRIGGER USER")
    made = (("history", _HISTORY, SIZES), ("assets", _ASSETS, ASSETS), ("terms", _TERMS, ASSETS))
    for table, statement, sizes in made:
        for size in sizes:
            for first in range(1, size + 1, _CHUNK):
                report(f"makes {table}: {first:,} of {size:,}")
                site.sql(
                    statement.format(size=size, first=first, last=min(size, first + _CHUNK - 1))
                )
    for name, definition in indexes:
        report(f"makes {name}")
        site.sql(str(definition))
    for table in ("usage_events", "assets", "asset_terms"):
        report(f"vacuums {table}")
        site.sql(f"VACUUM (ANALYZE) assets.{table}")


async def _histories(site: Site, db: Database, report: Report) -> list[Figure]:
    service: Any = history.UsageService(db, UsageLog(db, []))  # called without a context

    def page(size: int, **fields: Any) -> _Page:
        return _Page(
            _owner(size), lambda: service.ListUsage(usage_pb2.ListUsageRequest(**fields), None)
        )

    figures = [await _compare("history: the page of 1 row", page(1), page(SIZES[0]), report)]
    for size in SIZES[2:]:
        for place, behind in (("first", 0), ("middle", size // 2), ("last", 51)):
            asked = page(size, page_token=_token(site, size, behind) if behind else "")
            figures.append(
                await _compare(
                    f"history: {place} page of {size:,} rows", asked, page(SIZES[0]), report
                )
            )
        shares = page(size, action=usage_pb2.USAGE_ACTION_SHARE)
        figures.append(
            await _compare(f"history: an action's in {size:,} rows", shares, page(SIZES[0]), report)
        )
    return figures


def _token(site: Site, size: int, row: int) -> str:
    """Returns the token of the page behind the owner's row of that number."""
    auth.enter(_identity(_owner(size)))
    [(created_at, row_id)] = site.sql(_PLACE, (_owner(size), row))
    digest = paging.page(usage_pb2.ListUsageRequest()).digest
    assert isinstance(created_at, datetime)
    return paging.token_of(digest, created_at.isoformat(), str(row_id))


async def _searches(site: Site, db: Database, report: Report) -> list[Figure]:
    storage = open_disk(
        site.state.objects,
        base_url="http://127.0.0.1",
        secret=read_secret(site.state.storage_secret),
    )
    service = search.SearchService(db, asset_rows.Urls(storage, timedelta(hours=1), Meter(db)))

    def page(size: int, **fields: Any) -> _Page:
        return _Page(
            _owner(size),
            lambda: service.SearchAssets(search_pb2.SearchAssetsRequest(**fields), _NO_CONTEXT),
        )

    shot = search_pb2.MetadataCondition(path=["shot"], value={"number_value": 7})
    conditions: dict[str, dict[str, Any]] = {
        "a tag that all have": {"all_tags": ["all"]},
        "two frequent tags": {"all_tags": ["all", "half"]},
        "a frequent tag and a rare one": {"all_tags": ["all", "rare"]},
        "any of three tags": {"any_tags": ["all", "half", "rare"]},
        "a frequent tag and a value of metadata": {"all_tags": ["all"], "metadata": [shot]},
        "a name's beginning": {"file_name_prefix": "DSC_1"},
    }
    figures = [
        await _compare(
            f"search in {ASSETS[1]:,} assets: {name}",
            page(ASSETS[1], **fields),
            page(ASSETS[0], **fields),
            report,
        )
        for name, fields in conditions.items()
    ]
    await storage.close()
    return figures


async def _compare(what: str, ours: _Page, reference: _Page, report: Report) -> Figure:
    for page in (ours, reference):
        await _milliseconds(page)
    pairs = []
    for number in range(_ROUNDS):
        pairs.append((await _milliseconds(ours), await _milliseconds(reference)))
        report(f"{what}: round {number + 1} of {_ROUNDS}")
    return Rounds(pairs).figure("B7", f"{what} / of 1,000", "ms", _TARGET)


async def _milliseconds(page: _Page) -> float:
    auth.enter(_identity(page.owner))
    taken = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        await page.ask()
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken)


def _owner(size: int) -> str:
    return f"user:{size}"


def _identity(owner: str) -> auth.Identity:
    return auth.Identity("ada", owner, "user", 4e9)
