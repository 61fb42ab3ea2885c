"""B7P: pages of a million products, compared with those of a thousand.

It measures the service's own handler, as B7 does: with the service's own role, row policies, tables
and indexes. Both sizes share the tables, each with an owner of its own. Every product has an image,
four phases and some fourteen terms.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from atelier.pipeline.v1 import product_pb2

from bench.figure import Figure, Report, Rounds
from bench.site import Site
from cli.setup import login_url
from services.pipeline.product_lists import ListCalls
from shared.database.db import Database
from shared.database.migrate import migrate
from shared.rpc import auth, paging
from shared.settings import Settings

SIZES = (1000, 1_000_000)  # the first is the reference
_ROUNDS = 41
_CALLS = 10
_CHUNK = 100_000  # rows per statement
_TARGET = 1.2
_SUMMARY_TARGET = 500.0  # milliseconds, for a million rows that are counted one by one
_NO_CONTEXT: Any = None  # the measured handlers don't use their context
_TABLES = ("products", "product_images", "phases", "product_terms")

# Ids like ours, times a millisecond apart. Every size has full pages: one in twenty is in ERROR,
# one in ten is a hat, and of the older half one in four is archived.
_PRODUCTS = """
    INSERT INTO pipeline.products (id, owner, created_by, name, model, facts, auto_advance,
        market_provider, external_phases, state, error_class, preparation, created_at, archived_at)
    SELECT uuidv7(), 'user:' || {size}, 'ada',
        CASE WHEN n %% 10 = 0 THEN 'Hat ' ELSE 'Coat ' END || n, '', '{{}}', true, 'price_book',
        '{{}}', CASE WHEN n %% 20 = 7 THEN 'error' ELSE 'completed' END,
        CASE WHEN n %% 20 = 7 THEN 'MADE_UP' ELSE '' END, 'done',
        timestamptz '2026-01-01' + n * interval '1 millisecond',
        CASE WHEN n < {size} / 2 AND n %% 4 = 1 THEN now() END
    FROM generate_series({first}, {last}) AS n
"""
_OF_PRODUCTS = """
    FROM pipeline.products p WHERE p.owner = 'user:' || {size} AND p.created_at BETWEEN
        timestamptz '2026-01-01' + {first} * interval '1 millisecond'
        AND timestamptz '2026-01-01' + {last} * interval '1 millisecond'
"""
_IMAGES = (
    """
    INSERT INTO pipeline.product_images (owner, product_id, position, asset_id, view, is_primary)
    SELECT p.owner, p.id, 1, p.id, 'front', true
"""
    + _OF_PRODUCTS
)
_PHASES = """
    INSERT INTO pipeline.phases (id, owner, product_id, number, state, external)
    SELECT gen_random_uuid(), p.owner, p.id, number, 'completed', false
""" + _OF_PRODUCTS.replace("WHERE", "CROSS JOIN generate_series(1, 4) AS number WHERE", 1)
_TERMS = """
    INSERT INTO pipeline.product_terms (owner, term, created_at, id)
    SELECT p.owner, term, p.created_at, p.id
""" + _OF_PRODUCTS.replace(
    "WHERE", "CROSS JOIN LATERAL pipeline.product_terms_of(p) AS term WHERE", 1
)
_PLACE = """
    SELECT created_at, id FROM pipeline.products WHERE owner = %s
        AND created_at = timestamptz '2026-01-01' + %s * interval '1 millisecond'
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
        passwords = [site.state.password("pipeline", role) for role in ("app", "worker")]
        migrate("pipeline", site.admin_url, *passwords)
        await asyncio.to_thread(_fill, site, report)
        url = login_url(site.admin_url, "pipeline_app", passwords[0])
        db = Database(Settings(database_url=url), "pipeline", pool_size=2)
        await db.open()
        try:
            return await _compared(site, ListCalls(db, _NO_CONTEXT), report)
        finally:
            await db.close()


def _fill(site: Site, report: Report) -> None:
    # The database is thrown away at the end: no need to wait for the disk.
    for setting in (
        "fsync = off",
        "synchronous_commit = off",
        "full_page_writes = off",
        "max_wal_size = '4GB'",
    ):
        site.sql(f"ALTER SYSTEM SET {setting}")
    site.sql("SELECT pg_reload_conf()")
    # The triggers work a row at a time; here the same function is used for many rows at once.
    for table in _TABLES:
        site.sql(f"ALTER TABLE pipeline.{table} DISABLE TRIGGER ALL")
    for statement in (_PRODUCTS, _IMAGES, _PHASES, _TERMS):
        for size in SIZES:
            for first in range(1, size + 1, _CHUNK):
                report(f"{statement.split()[2]}: {first:,} of {size:,}")
                last = min(size, first + _CHUNK - 1)
                site.sql(statement.format(size=size, first=first, last=last))
    for table in _TABLES:
        report(f"vacuums {table}")
        site.sql(f"VACUUM (ANALYZE) pipeline.{table}")


async def _compared(site: Site, service: ListCalls, report: Report) -> list[Figure]:
    small, large = SIZES

    def page(size: int, **fields: Any) -> _Page:
        request = product_pb2.ListProductsRequest(**fields)
        return _Page(_owner(size), lambda: service.ListProducts(request, _NO_CONTEXT))

    wanted: dict[str, dict[str, Any]] = {
        "first page": {},
        "middle page": {"page_token": _token(site, large // 2)},
        "last page": {"page_token": _token(site, 69)},  # one in four of the oldest is archived
        "a state": {"state": product_pb2.PRODUCT_STATE_ERROR},
        "archived ones too": {"show_archived": True},
        "a frequent word": {"text": "coat"},
        "a beginning and a frequent word": {"text": "coat 1"},
        "a rarer word": {"text": "hat"},
        "a word and a state": {"text": "coat", "state": product_pb2.PRODUCT_STATE_ERROR},
    }
    figures = []
    for what, fields in wanted.items():
        alike = {name: value for name, value in fields.items() if name != "page_token"}
        asked = f"{large:,} products: {what}"
        figures.append(await _compare(asked, page(large, **fields), page(small, **alike), report))
    summary = _Page(
        _owner(large),
        lambda: service.GetSummary(product_pb2.GetSummaryRequest(), _NO_CONTEXT),
    )
    taken = statistics.median([await _milliseconds(summary) for _ in range(3)])
    counted = Figure("B7P", f"{large:,} products: the summary", "ms", taken, _SUMMARY_TARGET)
    return [*figures, counted]


def _token(site: Site, row: int) -> str:
    """Returns the token of the page behind the larger owner's row of that number."""
    owner = _owner(SIZES[1])
    auth.enter(_identity(owner))
    [(created_at, row_id)] = site.sql(_PLACE, (owner, row))
    digest = paging.page(product_pb2.ListProductsRequest()).digest
    assert isinstance(created_at, datetime)
    return paging.token_of(digest, created_at.isoformat(), str(row_id))


async def _compare(what: str, ours: _Page, reference: _Page, report: Report) -> Figure:
    for page in (ours, reference):
        await _milliseconds(page)
    pairs = []
    for number in range(_ROUNDS):
        pairs.append((await _milliseconds(ours), await _milliseconds(reference)))
        report(f"{what}: round {number + 1} of {_ROUNDS}")
    return Rounds(pairs).figure("B7P", f"{what} / of 1,000", "ms", _TARGET)


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
