"""Calls about storage, for tests to build on."""

import asyncio
from typing import Any

from atelier.assets.v1 import quota_pb2, quota_pb2_grpc, storage_report_pb2, storage_report_pb2_grpc

from tests.suite import Client, Suite


def reports(client: Client) -> Any:
    return client.stub(storage_report_pb2_grpc.StorageReportServiceStub)


def quotas(client: Client) -> Any:
    return client.stub(quota_pb2_grpc.QuotaServiceStub)


async def report(client: Client, owner: str = "") -> storage_report_pb2.StorageReport:
    request = storage_report_pb2.GetStorageReportRequest(owner=owner)
    made: storage_report_pb2.StorageReport = (
        await reports(client).GetStorageReport(request)
    ).report
    return made


async def set_quota(admin: Client, owner: str = "", **limits: Any) -> quota_pb2.Quota:
    request = quota_pb2.SetQuotaRequest(owner=owner, **limits)
    quota: quota_pb2.Quota = (await quotas(admin).SetQuota(request)).quota
    return quota


async def folded(suite: Suite) -> None:
    """Waits until the worker has added all counted changes to the totals."""
    await _none(suite, "assets.storage_deltas")


async def settled(suite: Suite, owner: str = "%") -> None:
    """Does the same after all variants have been made: an object of theirs may wait for its row."""
    await _none(
        suite,
        f"assets.renditions WHERE state IN ('pending', 'running') AND owner LIKE '{owner}'",
    )
    await folded(suite)


async def _none(suite: Suite, rows: str) -> None:
    async with asyncio.timeout(20):
        while suite.sql(f"SELECT count(*) FROM {rows}")[0][0]:
            await asyncio.sleep(0.1)


def truth(suite: Suite, owner: str) -> tuple[int, int]:
    """Counts the owner's assets except rejected ones, and its stored bytes, from the rows
    themselves."""
    [(assets, originals)] = suite.sql(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM assets.assets WHERE owner = %s AND"
        " state <> 'rejected'",
        (owner,),
    )
    made = (
        "SELECT (SELECT coalesce(sum(size_bytes), 0) FROM assets.variants WHERE owner = %(owner)s)"
    )
    made += " + (SELECT coalesce(sum(size_bytes), 0) FROM assets.documents WHERE owner = %(owner)s)"
    [(rest,)] = suite.sql(made, {"owner": owner})
    return assets, int(originals + rest)
