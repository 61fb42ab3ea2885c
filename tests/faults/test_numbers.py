"""Numbers of a slot have no gaps and one file is the latest, however many write and whoever is
killed."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from atelier.techfiles.v1 import history_pb2, history_pb2_grpc, tech_file_pb2, tech_file_pb2_grpc

from tests.assets.flows import request_id
from tests.faults.processes import Processes, Superuser
from tests.suite import Client

pytestmark = pytest.mark.faults

ROUNDS = 20
AT_ONCE = 64
KILLED = 4  # every so many rounds the server is killed in between
_REPEATED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
_HISTORY = """
    SELECT array_agg(number ORDER BY number) AS numbers, sum(latest) AS latest,
        max(number) FILTER (WHERE latest = 1) AS latest_number
    FROM (SELECT number, is_latest::int AS latest FROM techfiles.tech_files WHERE product_id = %s
        UNION ALL
        SELECT v.number, 0 FROM techfiles.tech_file_versions v
        JOIN techfiles.tech_files f ON f.id = v.tech_file_id WHERE f.product_id = %s) AS versions
"""


class Writer:
    """Sends calls, and repeats those that weren't answered with the same request_id."""

    def __init__(self, client: Client) -> None:
        self._files: Any = client.stub(tech_file_pb2_grpc.TechFileServiceStub)
        self._history: Any = client.stub(history_pb2_grpc.HistoryServiceStub)
        self.answered = 0
        self.repeated = 0

    async def create(self, product: str) -> Any:
        request = tech_file_pb2.CreateTechFileRequest(
            request_id=request_id(),
            product_id=product,
            file_type=tech_file_pb2.TECH_FILE_TYPE_SKETCH,
            view_type=tech_file_pb2.VIEW_TYPE_FRONT,
            state=tech_file_pb2.TECH_FILE_STATE_COMPLETED,
        )
        return (await self._acknowledged(self._files.CreateTechFile, request)).tech_file

    async def update(self, file_id: str) -> Any:
        request = tech_file_pb2.UpdateTechFileRequest(
            request_id=request_id(), tech_file_id=file_id, model="m"
        )
        request.update_mask.paths.append("model")
        return (await self._acknowledged(self._files.UpdateTechFile, request)).tech_file

    async def restore(self, file_id: str) -> Any:
        request = history_pb2.RestoreTechFileVersionRequest(
            request_id=request_id(), tech_file_id=file_id, version_number=1
        )
        answer = await self._acknowledged(self._history.RestoreTechFileVersion, request)
        return answer.tech_file

    async def _acknowledged(self, method: Any, request: Any) -> Any:
        while True:
            try:
                answer = await method(request, timeout=20)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _REPEATED:
                    raise
                self.repeated += 1
                await asyncio.sleep(0.1)
            else:
                self.answered += 1
                return answer


async def numbered(superuser: Superuser, product: str, expected: int) -> None:
    """Asserts that the product's slot has the numbers 1 to `expected`, and one latest file."""
    [row] = await superuser.rows(_HISTORY, product, product)
    assert row.numbers == list(range(1, expected + 1))
    assert (row.latest, row.latest_number) == (1, expected)


async def test_numbers_are_exact_under_concurrent_calls_and_kills(
    processes: Processes, measured: Callable[[str], None]
) -> None:
    superuser = Superuser(processes.cluster.url(processes.database))
    server = processes.serve("techfiles", lock_timeout_seconds=30)
    await server.healthy()
    client = Client(processes.addresses, processes.keys.token("ada"))
    writer = Writer(client)
    kills = 0

    for number in range(ROUNDS):
        product = f"product-{number}"
        creating = asyncio.gather(*(writer.create(product) for _ in range(AT_ONCE)))
        if number % KILLED == KILLED - 1:
            await asyncio.sleep(0.15)
            server.kill()
            kills += 1
            server = processes.serve("techfiles", server.port, lock_timeout_seconds=30)
        files = await creating
        assert sorted(file.version_number for file in files) == list(range(1, AT_ONCE + 1))
        await numbered(superuser, product, AT_ONCE)

        # Each of these takes one number more, in the same slot.
        mixed = [
            call(files[index].id) for index in range(8) for call in (writer.update, writer.restore)
        ]
        changing = asyncio.gather(*mixed, *(writer.create(product) for _ in range(8)))
        if number % KILLED == 0:
            await asyncio.sleep(0.05)
            server.kill()
            kills += 1
            server = processes.serve("techfiles", server.port, lock_timeout_seconds=30)
        changed = await changing
        assert sorted(file.version_number for file in changed) == list(
            range(AT_ONCE + 1, AT_ONCE + 25)
        )
        await numbered(superuser, product, AT_ONCE + 24)

    await client.close()
    measured(
        f"R5: {ROUNDS} rounds of {AT_ONCE} creations at once, then 24 updates, restorings and"
        f" creations at once, {kills} kill -9: {writer.answered} acknowledged, {writer.repeated}"
        " repeated; every number once, one latest file"
    )
