"""Search: assets by tags, metadata, kind, labels and names; and sums over them.

Whatever an asset can be found by is a row of `asset_terms`, kept by triggers in the transaction of
the change. A search is an intersection of groups of terms; within a group one term is enough. The
rarest group leads, in the order of the list, and each of its rows is looked up in the others, so
that a page costs no more in ten million assets than in ten.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.assets.v1 import search_pb2 as pb
from atelier.assets.v1 import search_pb2_grpc
from google.protobuf import struct_pb2
from psycopg.types.json import Jsonb

from services.assets.core import asset_rows
from shared.database.db import Database
from shared.rpc import auth, errors, paging
from shared.rpc.protos import plain, time_of

PREFIXES = (16, 12, *range(10, 0, -1))  # lengths at which beginnings of names are kept
_ENOUGH = 1000  # rows after which a term counts as frequent

# In the index's order, or the planner, who doesn't know which term it will be, reads the whole
# table instead.
_WEIGH = """
    WITH asked AS MATERIALIZED (
        SELECT t.n, asset_term(t.what, t.path, t.value::jsonb) AS term
        FROM jsonb_to_recordset(%(terms)s) AS t (n integer, what text, path text[], value text))
    SELECT asked.term, (SELECT count(*) FROM (
        SELECT FROM asset_terms x WHERE x.owner = %(owner)s AND x.term = asked.term
        ORDER BY x.owner, x.term, x.created_at, x.id LIMIT %(enough)s) AS counted) AS rows
    FROM asked ORDER BY asked.n
"""
_ALSO = """
    CROSS JOIN LATERAL (SELECT FROM asset_terms x WHERE x.owner = %(owner)s AND x.term
        = ANY(%(group_{n})s)
        AND x.created_at = lead.created_at AND x.id = lead.id LIMIT 1) AS also_{n}
"""
# What is longer than the beginning that leads to it.
_NAMED = """
    CROSS JOIN LATERAL (SELECT FROM assets a WHERE a.id = lead.id
        AND left(a.file_name, length(%(prefix)s)) = %(prefix)s LIMIT 1) AS named
"""
_STATS = """
    SELECT kind, mime_type, count(*) AS assets, count(*) FILTER (WHERE public) AS public,
           coalesce(sum(size_bytes), 0)::bigint AS bytes
    FROM assets WHERE owner = %(owner)s AND state = 'ready' AND deleted_at IS NULL
        AND archived_at IS NULL
"""


@dataclass(frozen=True, slots=True)
class Term:
    """What an asset can be found by: the digest of these three is in `asset_terms`."""

    what: str
    value: Any
    path: Sequence[str] = ()


class SearchService(search_pb2_grpc.SearchServiceServicer):
    def __init__(self, db: Database, urls: asset_rows.Urls) -> None:
        self._db = db
        self._urls = urls

    async def SearchAssets(
        self, request: pb.SearchAssetsRequest, context: Any
    ) -> pb.SearchAssetsResponse:
        page = paging.page(request)
        groups = list(_groups(request))
        if not groups:
            text = "needs at least one condition besides dates; ListAssets lists everything"
            raise errors.invalid("all_tags", text)
        lead, others = await self._weighed(groups)
        statement, parameters = _statement(request, lead, others, page)
        rows = await self._db.rows(statement, parameters | page.parameters)
        urls = self._urls if request.include_urls else None
        found, token = page.fill(rows, await asset_rows.shown(self._db, page.cut(rows), urls))
        return pb.SearchAssetsResponse(assets=found, next_page_token=token)

    async def GetAssetStats(
        self, request: pb.GetAssetStatsRequest, context: Any
    ) -> pb.GetAssetStatsResponse:
        conditions, parameters = _dates(request)
        if request.kind:
            conditions += " AND kind = %(kind)s"
            parameters["kind"] = asset_rows.KINDS.word[request.kind]
        statement: Any = f"{_STATS}{conditions} GROUP BY kind, mime_type ORDER BY kind, mime_type"
        sums = [
            pb.AssetSum(
                kind=asset_rows.KINDS.number[row.kind],
                mime_type=row.mime_type,
                asset_count=row.assets,
                public_count=row.public,
                size_bytes=row.bytes,
            )
            for row in await self._db.rows(statement, {"owner": auth.current().owner, **parameters})
        ]
        return pb.GetAssetStatsResponse(
            sums=sums,
            asset_count=sum(s.asset_count for s in sums),
            size_bytes=sum(s.size_bytes for s in sums),
        )

    async def _weighed(
        self, groups: Sequence[Sequence[Term]]
    ) -> tuple[list[bytes], list[list[bytes]]]:
        """The digests of the group with the fewest rows, as far as they need counting, and those of
        the others."""
        terms = [term for group in groups for term in group]
        asked = [
            {"n": n, "what": term.what, "path": list(term.path), "value": json.dumps(term.value)}
            for n, term in enumerate(terms)
        ]
        rows = iter(
            await self._db.rows(
                _WEIGH, {"owner": auth.current().owner, "terms": Jsonb(asked), "enough": _ENOUGH}
            )
        )
        weighed = []
        for group in groups:
            found = [next(rows) for _ in group]
            weighed.append((sum(row.rows for row in found), [row.term for row in found]))
        weighed.sort(key=lambda each: each[0])
        lead, *others = [digests for _, digests in weighed]
        return lead, others


def _groups(request: pb.SearchAssetsRequest) -> Iterator[list[Term]]:
    """Every condition but dates: of each group the asset must have one term."""
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
        yield [Term("kind", asset_rows.KINDS.word[request.kind])]
    for name in asset_rows.SCOPES:
        if label := getattr(request.scope, name):
            yield [Term(name, _text(label, f"scope.{name}"))]
    if prefix := _prefix(request):
        yield [Term("name", prefix[: _kept(prefix)])]


def _statement(
    request: pb.SearchAssetsRequest,
    lead: Sequence[bytes],
    others: Sequence[Sequence[bytes]],
    page: paging.Page,
) -> tuple[Any, dict[str, Any]]:
    """A list for each term that leads, merged; at most a page of each is looked at."""
    conditions, parameters = _dates(request)
    parameters |= {"owner": auth.current().owner, "prefix": _prefix(request)}
    parameters |= {f"lead_{n}": term for n, term in enumerate(lead)}
    parameters |= {f"group_{n}": list(terms) for n, terms in enumerate(others)}
    probes = "".join(_ALSO.format(n=n) for n in range(len(others)))
    if len(parameters["prefix"]) > _kept(parameters["prefix"]):
        probes += _NAMED
    lists = " UNION ".join(
        f"(SELECT created_at, id FROM asset_terms lead {probes}"
        f" WHERE owner = %(owner)s AND term = %(lead_{n})s{conditions}{page.clause})"
        for n in range(len(lead))
    )
    return (
        (
            f"SELECT a.* FROM ({lists}) AS found JOIN assets a ON a.id = found.id"
            " ORDER BY found.created_at DESC, found.id DESC LIMIT %(limit)s"
        ),
        parameters,
    )


def _dates(request: Any) -> tuple[str, dict[str, Any]]:
    conditions, parameters = "", {}
    for name, operator in (("created_from", ">="), ("created_before", "<")):
        at = time_of(getattr(request, name), request.HasField(name), name)
        if at is not None:
            conditions += f" AND created_at {operator} %({name})s"
            parameters[name] = at
    return conditions, parameters


def _prefix(request: pb.SearchAssetsRequest) -> str:
    """Composed like the names that are kept."""
    return unicodedata.normalize("NFC", _text(request.file_name_prefix, "file_name_prefix"))


def _kept(prefix: str) -> int:
    """How much of it is kept as a term."""
    return next((length for length in PREFIXES if length <= len(prefix)), 0)


def _leaf(value: struct_pb2.Value, field: str) -> Any:
    """As it is stored: whole numbers without a fraction."""
    if value.WhichOneof("kind") not in ("string_value", "number_value", "bool_value", "null_value"):
        raise errors.invalid(field, "must be a string, number, bool or null")
    made: Mapping[str, Any] = plain(struct_pb2.Struct(fields={"leaf": value}), field)
    return _text(made["leaf"], field) if isinstance(made["leaf"], str) else made["leaf"]


def _text(text: str, field: str) -> str:
    if "\x00" in text:
        raise errors.invalid(field, "may not contain NUL, which no stored text has")
    return text
