"""B7F: pages of tech files among a million, compared with those of a thousand.

It measures the service's own handler, from the request to the answer, with the service's own role,
row policies, tables and indexes. Both sizes share one table, each with an owner of its own. Rounds
alternate. One file in a hundred is FAILED.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from atelier.techfiles.v1 import tech_file_pb2 as pb

from bench.figure import Figure, Report, Rounds
from bench.site import Site
from cli.setup import login_url
from services.techfiles import tech_files
from services.techfiles.views import TechFileViews
from shared.database.db import Database
from shared.database.migrate import migrate
from shared.rpc import auth, paging
from shared.settings import Settings

SIZES = (1000, 1_000_000)  # the first is the reference
_ROUNDS = 41
_CALLS = 10
_CHUNK = 100_000  # rows per statement
_TARGET = 1.2
_UNUSED: Any = None  # what a page without URLs doesn't need

_SLOTS = """
    INSERT INTO techfiles.slots (id, owner, product_id, file_type, view_type, file_category,
        last_number)
    SELECT md5({size} || 's' || n)::uuid, 'user:' || {size}, 'p' || n, 'sketch', 'front', '', 1000
    FROM generate_series(1, {size} / 1000) AS n
"""
_FILES = """
    INSERT INTO techfiles.tech_files (id, owner, created_by, slot_id, product_id, file_type,
        view_type, state, number, numbered_at, created_at)
    SELECT md5({size} || 'f' || n)::uuid, 'user:' || {size}, 'ada',
        md5({size} || 's' || 1 + n / 1000)::uuid, 'p' || 1 + n / 1000, 'sketch', 'front',
        CASE WHEN n %% 100 = 7 THEN 'failed' ELSE 'completed' END, 1 + n %% 1000, now(),
        timestamptz '2026-01-01' + n * interval '1 millisecond'
    FROM generate_series({first}, {last}) AS n
"""
_PLACE = """
    SELECT created_at, id FROM techfiles.tech_files
    WHERE owner = %s AND (%s = '' OR state = %s)
    ORDER BY created_at, id OFFSET %s LIMIT 1
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
        passwords = [site.state.password("techfiles", role) for role in ("app", "worker")]
        migrate("techfiles", site.admin_url, *passwords)
        await asyncio.to_thread(_fill, site, report)
        url = login_url(site.admin_url, "techfiles_app", passwords[0])
        db = Database(Settings(database_url=url), "techfiles", pool_size=2)
        await db.open()
        try:
            return await _measured(site, db, report)
        finally:
            await db.close()


def _fill(site: Site, report: Report) -> None:
    for setting in ("fsync = off", "synchronous_commit = off", "max_wal_size = '4GB'"):
        site.sql(f"ALTER SYSTEM SET {setting}")
    site.sql("SELECT pg_reload_conf()")
    site.sql("ALTER TABLE techfiles.tech_files DISABLE TRIGGER ALL")  # no check for each row
    for size in SIZES:
        site.sql(_SLOTS.format(size=size))
        for first in range(0, size, _CHUNK):
            report(f"makes files: {first:,} of {size:,}")
            last = min(size, first + _CHUNK) - 1
            site.sql(_FILES.format(size=size, first=first, last=last))
    site.sql("ALTER TABLE techfiles.tech_files ENABLE TRIGGER ALL")
    site.sql("VACUUM (ANALYZE) techfiles.tech_files")


async def _measured(site: Site, db: Database, report: Report) -> list[Figure]:
    views: Any = TechFileViews(db, _UNUSED, _UNUSED, _UNUSED, None)
    service: Any = tech_files.TechFileService(db, _UNUSED, _UNUSED, views)
    filters: dict[str, dict[str, Any]] = {
        "all": {},
        "COMPLETED ones": {"state": pb.TECH_FILE_STATE_COMPLETED},
        "FAILED ones, 1 in 100": {"state": pb.TECH_FILE_STATE_FAILED},
    }

    def page(size: int, **fields: Any) -> _Page:
        request = pb.ListTechFilesRequest(page_size=10, **fields)
        return _Page(f"user:{size}", lambda: service.ListTechFiles(request, _UNUSED))

    figures = []
    for name, fields in filters.items():
        rows = SIZES[1] // 100 if "FAILED" in name else SIZES[1]
        for place, left in (("first", 0), ("middle", rows // 2), ("last", 11)):
            token = _token(site, left, fields) if left else ""
            what = f"files: {place} page of {name} among {SIZES[1]:,}"
            ours = page(SIZES[1], page_token=token, **fields)
            figures.append(await _compare(what, ours, page(SIZES[0], **fields), report))
    return figures


def _token(site: Site, left: int, fields: dict[str, Any]) -> str:
    """Returns the token of the page that has so many rows left before its end."""
    owner = f"user:{SIZES[1]}"
    state = {0: "", pb.TECH_FILE_STATE_COMPLETED: "completed", pb.TECH_FILE_STATE_FAILED: "failed"}
    word = state[fields.get("state", 0)]
    [(at, file_id)] = site.sql(_PLACE, (owner, word, word, left))
    auth.enter(_identity(owner))
    assert isinstance(at, datetime)
    digest = paging.page(pb.ListTechFilesRequest(page_size=10, **fields)).digest
    return paging.token_of(digest, at.isoformat(), str(file_id))


async def _compare(what: str, ours: _Page, reference: _Page, report: Report) -> Figure:
    for page in (ours, reference):
        await _milliseconds(page)
    pairs = []
    for number in range(_ROUNDS):
        pairs.append((await _milliseconds(ours), await _milliseconds(reference)))
        report(f"{what}: round {number + 1} of {_ROUNDS}")
    return Rounds(pairs).figure("B7F", f"{what} / of 1,000", "ms", _TARGET)


async def _milliseconds(page: _Page) -> float:
    auth.enter(_identity(page.owner))
    taken = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        await page.ask()
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken)


def _identity(owner: str) -> auth.Identity:
    return auth.Identity("ada", owner, "user", 4e9)
