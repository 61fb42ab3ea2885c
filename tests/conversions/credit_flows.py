"""Steps and constants of the tests of credits."""

from typing import Any

import grpc
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    credit_pb2,
)

from shared.telemetry import METRICS
from tests.assets import flows as assets
from tests.assets.flows import request_id
from tests.conversions import flows
from tests.suite import Client, Suite

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
GRANT, RESERVE, COMMIT, RELEASE, ADJUST = (
    credit_pb2.CreditEntryKind.Value(f"CREDIT_ENTRY_KIND_{name}")
    for name in ("GRANT", "RESERVE", "COMMIT", "RELEASE", "ADJUST")
)
PICTURE = assets.jpeg(64, 48)


def olga(suite: Suite) -> Any:
    """Returns the service as an operator calls it."""
    return flows.credits(suite.client("olga", "admin"))


async def pictures(client: Client, *, free: bool) -> tuple[str, str]:
    user = await assets.upload(client, PICTURE, kind=asset_pb2.ASSET_KIND_USER, free=free)
    cloth = await assets.upload(client, PICTURE, kind=asset_pb2.ASSET_KIND_CLOTH, free=free)
    return user.id, cloth.id


async def analyse(client: Client, **fields: Any) -> analysis_pb2.Analysis:
    """Creates an analysis, which costs a credit."""
    return await flows.analyse_facts(client, **{"wait": False, **fields})


async def cancel(client: Client, analysis_id: str) -> analysis_pb2.Analysis:
    request = analysis_pb2.CancelAnalysisRequest(request_id=request_id(), analysis_id=analysis_id)
    answer = await flows.analyses(client).CancelAnalysis(request)
    cancelled: analysis_pb2.Analysis = answer.analysis
    return cancelled


async def changes(client: Client) -> list[tuple[int, int, int, int]]:
    return [
        (entry.kind, entry.credits, entry.available_change, entry.reserved_change)
        for entry in await flows.entries(client)
    ]


def shown(name: str, **labels: str) -> float:
    return METRICS.get_sample_value(name, labels) or 0.0


async def account(client: Client) -> tuple[int, int]:
    balance = await flows.balance(client)
    return balance.available, balance.reserved


async def set_budget(stub: Any, owner: str = "", **fields: Any) -> credit_pb2.Balance:
    request = credit_pb2.SetBudgetRequest(request_id=request_id(), owner=owner, **fields)
    balance: credit_pb2.Balance = (await stub.SetBudget(request)).balance
    return balance
