"""An rpc that says NO_SIDE_EFFECTS changes nothing: the owner of some rows calls every such rpc,
and afterwards no table has other rows, except the server's own books of who reads what."""

from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2

from tests import calls
from tests.suite import Suite
from tests.test_tenancy import METHODS, SERVICES, cases, outcome, owned, rows_for, suite

__all__ = ["owned", "suite"]  # fixtures

BOOKS = ("usage_events", "usage_days", "storage_deltas", "erasure_services")
READS = [
    name
    for name, method in METHODS.items()
    if method.GetOptions().idempotency_level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
]


def everything(suite: Suite) -> Mapping[str, Any]:
    """Returns a digest of each table that a service has."""
    tables = suite.sql(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ANY(%s)"
        " AND tablename <> ALL(%s)",
        (SERVICES, list(BOOKS)),
    )
    return {
        f"{schema}.{table}": suite.sql(
            f"SELECT md5(string_agg(t::text, ';' ORDER BY t::text)) FROM {schema}.{table} t"
        )
        for schema, table in tables
    }


def test_there_are_reads_of_every_service() -> None:
    assert {calls.service_of(name) for name in READS} == set(SERVICES) and len(READS) > 60


@pytest.mark.long
async def test_reads_leave_every_table_as_it_is(suite: Suite, owned: Mapping[str, Any]) -> None:
    before = everything(suite)
    assert len(before) > 40
    for name in READS:
        case = cases()[name]
        client = suite.client("ada", case.owner_role)
        served = await outcome(client, name, case, rows_for(name, owned))
        assert isinstance(served, list) or served is case.owner is not grpc.StatusCode.OK, name
        after = everything(suite)
        assert [table for table in before if after[table] != before[table]] == [], name


async def test_a_write_is_seen_by_this_test(suite: Suite, owned: Mapping[str, Any]) -> None:
    name = "assets/atelier.webhooks.v1.WebhookService.RotateSecret"
    before = everything(suite)
    served = await outcome(suite.client("ada"), name, cases()[name], rows_for(name, owned))
    assert isinstance(served, list) and everything(suite) != before
