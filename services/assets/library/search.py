"""SearchService: finds assets by tags, metadata, kind, labels and names; and sums over them.

Everything that an asset can be found by is a row of `asset_terms`, which triggers write in the
transaction of the change. shared/database/terms.py says how it is read.
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from atelier.assets.v1 import search_pb2 as pb
from atelier.assets.v1 import search_pb2_grpc
from google.protobuf import struct_pb2
from psycopg.types.json import Jsonb

from services.assets.core import asset_rows
from services.assets.core.asset_rows import ASSETS, KINDS, Asset, Urls, scope_of
from shared.database.db import Database
from shared.database.lists import created
from shared.database.rows import Statement, compiled
from shared.database.terms import TermListing
from shared.rpc import auth, errors, paging
from shared.rpc.protos import plain
from shared.rpc.server import Context

PREFIXES = (16, 12, *range(10, 0, -1))  # lengths of the beginnings of a name that are terms
_ENOUGH = 1000  # rows after which a term counts as frequent


@dataclass(slots=True)
class _Weight:
    """The digest of a term, and how many rows it has, counted up to `_ENOUGH`."""

    term: bytes
    rows: int


# The ORDER BY is the index's: without it the planner, which doesn't know the term, reads the whole
# table instead.
_WEIGH_TERMS = Statement(
    _Weight,
    """
    WITH asked AS MATERIALIZED (
        SELECT t.n, asset_term(t.what, t.path, t.value::jsonb) AS term
        FROM jsonb_to_recordset(%(terms)s) AS t (n integer, what text, path text[], value text))
    SELECT asked.term, (SELECT count(*) FROM (
        SELECT FROM asset_terms x WHERE x.owner = %(owner)s AND x.term = asked.term
        ORDER BY x.owner, x.term, x.created_at, x.id LIMIT %(enough)s) AS counted) AS rows
    FROM asked ORDER BY asked.n
    """,
)


@dataclass(slots=True)
class _Sum:
    """The number and bytes of the assets of one kind and media type."""

    kind: str
    mime_type: str
    assets: int
    public: int
    bytes: int


@cache
def _sum_assets(filters: tuple[str, ...]) -> Statement[_Sum]:
    row = ASSETS.core.c
    conditions = {
        "kind": row.kind == sa.bindparam("kind"),
        "created_from": row.created_at >= sa.bindparam("created_from"),
        "created_before": row.created_at < sa.bindparam("created_before"),
    }
    sums = sa.select(
        row.kind,
        row.mime_type,
        sa.func.count().label("assets"),
        sa.func.count().filter(row.public).label("public"),
        sa.cast(
            sa.func.coalesce(sa.func.sum(row.size_bytes), sa.literal_column("0")), sa.BigInteger
        ).label("bytes"),
    )
    return compiled(
        _Sum,
        sums.where(
            row.owner == sa.bindparam("owner"),
            row.state == sa.literal_column("'ready'"),
            row.deleted_at.is_(None),
            row.archived_at.is_(None),
            *(conditions[name] for name in filters),
        )
        .group_by(row.kind, row.mime_type)
        .order_by(row.kind, row.mime_type),
    )


def _begins(row: Any, prefix: sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    """The name begins with the whole prefix, of which the term for names has only the beginning."""
    begins: sa.ColumnElement[bool] = sa.func.left(row.file_name, sa.func.length(prefix)) == prefix
    return begins


_SEARCH = TermListing(ASSETS, Asset, "asset_terms", sa.LargeBinary, prefix=_begins)


@dataclass(frozen=True, slots=True)
class Term:
    """Something that an asset can be found by: `asset_terms` has the digest of these three."""

    what: str
    value: Any
    path: Sequence[str] = ()


class SearchService(search_pb2_grpc.SearchServiceServicer):
    def __init__(self, db: Database, urls: Urls) -> None:
        self._db = db
        self._urls = urls

    async def SearchAssets(
        self, request: pb.SearchAssetsRequest, context: Context
    ) -> pb.SearchAssetsResponse:
        page = paging.page(request)
        groups = list(_groups(request))
        if not groups:
            text = "needs at least one condition besides dates; ListAssets lists everything"
            raise errors.invalid("all_tags", text)
        lead, others = await self._weighed(groups)
        rows = await self._db.all(*_query(request, lead, others, page))
        urls = self._urls if request.include_urls else None
        found, token = page.fill(rows, await asset_rows.shown(self._db, page.cut(rows), urls))
        return pb.SearchAssetsResponse(assets=found, next_page_token=token)

    async def GetAssetStats(
        self, request: pb.GetAssetStatsRequest, context: Context
    ) -> pb.GetAssetStatsResponse:
        wanted = _set({"kind": KINDS.word.get(request.kind), **created(request)})
        rows = await self._db.all(
            _sum_assets(tuple(wanted)), {"owner": auth.current().owner, **wanted}
        )
        sums = [
            pb.AssetSum(
                kind=KINDS.number[row.kind],
                mime_type=row.mime_type,
                asset_count=row.assets,
                public_count=row.public,
                size_bytes=row.bytes,
            )
            for row in rows
        ]
        return pb.GetAssetStatsResponse(
            sums=sums,
            asset_count=sum(each.asset_count for each in sums),
            size_bytes=sum(each.size_bytes for each in sums),
        )

    async def _weighed(
        self, groups: Sequence[Sequence[Term]]
    ) -> tuple[list[bytes], list[list[bytes]]]:
        """Returns the digests of the group with the fewest rows, counted up to `_ENOUGH` for each
        term, and those of the other groups."""
        terms = [term for group in groups for term in group]
        asked = [
            {"n": n, "what": term.what, "path": list(term.path), "value": json.dumps(term.value)}
            for n, term in enumerate(terms)
        ]
        rows = iter(
            await self._db.all(
                _WEIGH_TERMS,
                {"owner": auth.current().owner, "terms": Jsonb(asked), "enough": _ENOUGH},
            )
        )
        weighed = []
        for group in groups:
            found = [next(rows) for _ in group]
            weighed.append((sum(row.rows for row in found), [row.term for row in found]))
        weighed.sort(key=lambda each: each[0])
        lead, *others = [digests for _, digests in weighed]
        return lead, others


def _query(
    request: pb.SearchAssetsRequest,
    lead: Sequence[bytes],
    others: Sequence[Sequence[bytes]],
    page: paging.Page,
) -> tuple[Statement[Asset], dict[str, object]]:
    """Returns the statement of a search, with its parameters."""
    prefix = _prefix(request)
    cut = prefix if len(prefix) > _kept(prefix) else ""
    return _SEARCH.query(page, lead, others, {"prefix": cut, **created(request)})


def _set(filters: dict[str, object]) -> dict[str, object]:
    """Returns the filters that have a value."""
    return {name: value for name, value in filters.items() if value}


def _groups(request: pb.SearchAssetsRequest) -> Iterator[list[Term]]:
    """Yields a group of terms for every condition but dates: the asset must have one term of each
    group."""
    for index, tag in enumerate(request.all_tags):
        yield [Term("tag", _text(tag, f"all_tags[{index}]"))]
    if request.any_tags:
        yield [
            Term("tag", _text(tag, f"any_tags[{index}]"))
            for index, tag in enumerate(request.any_tags)
        ]
    for index, leaf in enumerate(request.metadata):
        field = f"metadata[{index}]"
        path = [_text(name, f"{field}.path[{n}]") for n, name in enumerate(leaf.path)]
        yield [Term("metadata", _leaf(leaf.value, f"{field}.value"), path)]
    if request.kind:
        yield [Term("kind", KINDS.word[request.kind])]
    for name, label in scope_of(request.scope).items():
        if label:
            yield [Term(name, _text(label, f"scope.{name}"))]
    if prefix := _prefix(request):
        yield [Term("name", prefix[: _kept(prefix)])]


def _prefix(request: pb.SearchAssetsRequest) -> str:
    """Returns the prefix in NFC, as the stored names are."""
    return unicodedata.normalize("NFC", _text(request.file_name_prefix, "file_name_prefix"))


def _kept(prefix: str) -> int:
    """Returns how long the longest beginning of the prefix is that can be a term."""
    return next((length for length in PREFIXES if length <= len(prefix)), 0)


def _leaf(value: struct_pb2.Value, field: str) -> Any:
    """Returns the value as it is stored: whole numbers without a fraction."""
    if value.WhichOneof("kind") not in ("string_value", "number_value", "bool_value", "null_value"):
        raise errors.invalid(field, "must be a string, number, bool or null")
    made = plain(struct_pb2.Struct(fields={"leaf": value}), field)
    return _text(made["leaf"], field) if isinstance(made["leaf"], str) else made["leaf"]


def _text(text: str, field: str) -> str:
    if "\x00" in text:
        raise errors.invalid(field, "may not contain NUL, which no stored text has")
    return text
