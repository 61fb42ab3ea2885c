"""SearchService: finds assets by tags, metadata, kind, labels and names; and sums over them.

Everything that an asset can be found by is a row of `asset_terms`, which triggers write in the
transaction of the change. A search is an intersection of groups of terms; within a group one term
is enough. The group with the fewest rows leads: it is read in the order of the list, and each of
its rows is looked up in the others, so that a page costs no more in ten million assets than in ten.
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


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the statement of a search depends on: how many groups there are besides the one that
    leads, whether names are compared, the bounds in time that are set, and whether the page begins
    after a row."""

    groups: int
    named: bool
    bounds: tuple[str, ...]
    goes_on: bool


_TERMS = sa.table("asset_terms", *map(sa.column, ("owner", "term", "created_at", "id")))


@cache
def _search(shape: _Shape) -> Statement[Asset]:
    """Returns the statement of a search: it merges one list for each term of the leading group, and
    reads at most a page of each."""
    leads = sa.func.unnest(sa.bindparam("leads")).table_valued("term").render_derived(name="leads")
    listed = _list_of(leads.c.term, shape).lateral("listed")
    found = (
        sa.select(listed.c.created_at, listed.c.id)
        .select_from(leads.join(listed, sa.true()))
        .distinct()
        .subquery("found")
    )
    asset = ASSETS.core.alias("a")
    return compiled(
        Asset,
        sa.select(asset)
        .select_from(found.join(asset, asset.c.id == found.c.id))
        .order_by(found.c.created_at.desc(), found.c.id.desc())
        .limit(sa.bindparam("limit")),
    )


def _list_of(term: sa.ColumnElement[Any], shape: _Shape) -> sa.Select[Any]:
    """Returns a select of a page of the assets that have the term, one term of each of the other
    groups, and the beginning of the name."""
    lead = _TERMS.alias("lead")
    bounds = {
        "created_from": lead.c.created_at >= sa.bindparam("created_from"),
        "created_before": lead.c.created_at < sa.bindparam("created_before"),
    }
    found: sa.FromClause = lead
    for n in range(shape.groups):
        found = found.join(_also_in(n, lead), sa.true())
    if shape.named:
        found = found.join(_named(lead), sa.true())
    where = [
        lead.c.owner == sa.bindparam("owner"),
        lead.c.term == term,
        *(bounds[name] for name in shape.bounds),
    ]
    if shape.goes_on:
        last = sa.tuple_(sa.bindparam("after_at"), sa.bindparam("after_id"))
        where.append(sa.tuple_(lead.c.created_at, lead.c.id) < last)
    # In the order of the index, as in `_WEIGH_TERMS`: the planner does not know the term.
    order = (lead.c.owner, lead.c.term, lead.c.created_at, lead.c.id)
    return (
        sa.select(lead.c.created_at, lead.c.id)
        .select_from(found)
        .where(*where)
        .order_by(*(column.desc() for column in order))
        .limit(sa.bindparam("limit"))
        .offset(sa.bindparam("skip"))
    )


def _also_in(n: int, lead: sa.FromClause) -> sa.FromClause:
    """Returns a lateral subquery that has a row if the asset has a term of the group."""
    other = _TERMS.alias("x")
    has = sa.select().where(
        other.c.owner == sa.bindparam("owner"),
        other.c.term == sa.any_(sa.bindparam(f"group_{n}")),
        other.c.created_at == lead.c.created_at,
        other.c.id == lead.c.id,
    )
    return has.limit(sa.literal_column("1")).lateral(f"also_{n}")


def _named(lead: sa.FromClause) -> sa.FromClause:
    """Returns a lateral subquery that has a row if the asset's name begins with the whole prefix,
    of which the term for names has only the beginning."""
    asset = ASSETS.core.alias("named_asset")
    prefix: sa.BindParameter[Any] = sa.bindparam("prefix")
    begins = sa.func.left(asset.c.file_name, sa.func.length(prefix)) == prefix
    has = sa.select().where(asset.c.id == lead.c.id, begins)
    return has.limit(sa.literal_column("1")).lateral("named")


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
    bounds = _set(created(request))
    prefix = _prefix(request)
    named = len(prefix) > _kept(prefix)
    shape = _Shape(len(others), named, tuple(bounds), page.after is not None)
    parameters: dict[str, object] = {
        "owner": auth.current().owner,
        "prefix": prefix,
        "leads": list(lead),
        **{f"group_{n}": list(terms) for n, terms in enumerate(others)},
        **bounds,
        **page.parameters,
    }
    return _search(shape), parameters


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
