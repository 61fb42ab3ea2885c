"""Lists the rows of a table that have certain terms: newest first, in pages.

A side table of a table has a row (owner, term, created_at, id) for everything that a row can be
found by, and a B-tree in this order. A search is an intersection of groups of terms; within a group
one term is enough. The group with the fewest rows leads: it is read in the order of the list, and
each of its rows is looked up in the others, so that a page costs no more in ten million rows than
in ten.

    _SEARCH = TermListing(PRODUCTS, Product, "product_terms", sa.Text, named=...)

    wanted = {**created(request), "named": words}
    rows = await db.all(*_SEARCH.query(page, lead, others, wanted))
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from shared.database.lists import Filter
from shared.database.rows import Statement, Table, compiled
from shared.rpc import auth
from shared.rpc.paging import Page

R = TypeVar("R")


class TermListing(Generic[R]):
    """Lists one owner's rows by their terms. `terms` names the side table, `kind` is the type of
    its terms. `checks` are conditions on a row itself, each by the name of its parameter."""

    def __init__(
        self,
        table: Table[Any],
        row: type[R],
        terms: str,
        kind: type[sa.types.TypeEngine[Any]],
        **checks: Filter,
    ) -> None:
        self._table = table
        self._row = row
        self._kind = kind
        self._terms = sa.table(terms, *map(sa.column, ("owner", "term", "created_at", "id")))
        self._checks = checks

    def query(
        self,
        page: Page,
        lead: Sequence[Any],
        others: Sequence[Sequence[Any]],
        wanted: Mapping[str, object],
    ) -> tuple[Statement[R], dict[str, object]]:
        """Returns a page's statement and parameters: rows with a term of `lead`, and one of each of
        `others`. `wanted` has bounds in time and checks; what is None or empty is ignored. It reads
        one row more than the page has."""
        given = {name: value for name, value in wanted.items() if value}
        statement = self._statement(len(others), tuple(sorted(given)), page.after is not None)
        groups = {f"group_{n}": list(terms) for n, terms in enumerate(others)}
        return statement, {
            "owner": auth.current().owner,
            "leads": list(lead),
            **groups,
            **given,
            **page.parameters,
        }

    @cache  # noqa: B019 - lists live as long as the process
    def _statement(self, groups: int, names: tuple[str, ...], goes_on: bool) -> Statement[R]:
        """Returns a statement that merges one list for each leading term, and reads at most a page
        of each."""
        given = sa.cast(sa.bindparam("leads"), sa.ARRAY(self._kind))
        leads = sa.func.unnest(given).table_valued("term")
        leads = leads.render_derived(name="leads")
        listed = self._list_of(leads.c.term, groups, names, goes_on).lateral("listed")
        found = (
            sa.select(listed.c.created_at, listed.c.id)
            .select_from(leads.join(listed, sa.true()))
            .distinct()
            .subquery("found")
        )
        row = self._table.core.alias("r")
        return compiled(
            self._row,
            sa.select(row)
            .select_from(found.join(row, row.c.id == found.c.id))
            .order_by(found.c.created_at.desc(), found.c.id.desc())
            .limit(sa.bindparam("limit"))
            .offset(sa.bindparam("skip")),
        )

    def _list_of(
        self, term: sa.ColumnElement[Any], groups: int, names: tuple[str, ...], goes_on: bool
    ) -> sa.Select[Any]:
        """Returns a select of the first rows that have the term, one of each other group, and pass
        the checks: as many as pages up to this one may need."""
        lead = self._terms.alias("lead")
        bounds: dict[str, sa.ColumnElement[bool]] = {
            "created_from": lead.c.created_at >= sa.bindparam("created_from"),
            "created_before": lead.c.created_at < sa.bindparam("created_before"),
        }
        found: sa.FromClause = lead
        for n in range(groups):
            found = found.join(self._also_in(n, lead), sa.true())
        for name in names:
            if name not in bounds:
                found = found.join(self._checked(name, lead), sa.true())
        where = [
            lead.c.owner == sa.bindparam("owner"),
            lead.c.term == term,
            *(bounds[name] for name in names if name in bounds),
        ]
        if goes_on:
            last = sa.tuple_(sa.bindparam("after_at"), sa.bindparam("after_id"))
            where.append(sa.tuple_(lead.c.created_at, lead.c.id) < last)
        # The whole key of the index, because the planner doesn't know the term: it would read the
        # whole table instead.
        order = (lead.c.owner, lead.c.term, lead.c.created_at, lead.c.id)
        return (
            sa.select(lead.c.created_at, lead.c.id)
            .select_from(found)
            .where(*where)
            .order_by(*(column.desc() for column in order))
            .limit(_number("limit") + _number("skip"))
        )

    def _also_in(self, n: int, lead: sa.FromClause) -> sa.FromClause:
        """Returns a lateral subquery that has a row if the lead's row has a term of the group."""
        other = self._terms.alias("x")
        has = sa.select().where(
            other.c.owner == sa.bindparam("owner"),
            other.c.term == sa.any_(sa.bindparam(f"group_{n}")),
            other.c.created_at == lead.c.created_at,
            other.c.id == lead.c.id,
        )
        return has.limit(sa.literal_column("1")).lateral(f"also_{n}")

    def _checked(self, name: str, lead: sa.FromClause) -> sa.FromClause:
        """Returns a lateral subquery that has a row if the lead's row passes the check."""
        row = self._table.core.alias(f"{name}_row")
        value: sa.BindParameter[Any] = sa.bindparam(name)
        has = sa.select().where(row.c.id == lead.c.id, self._checks[name](row.c, value))
        return has.limit(sa.literal_column("1")).lateral(name)


def _number(name: str) -> sa.ColumnElement[int]:
    """Returns a parameter that can be added: the database doesn't know its type otherwise."""
    return sa.cast(sa.bindparam(name), sa.BigInteger)
