from typing import Any

from atelier.pipeline.v1 import log_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from services.pipeline.log_pruning import LogPruner
from shared.database.db import Database
from shared.rpc.paging import ANSWER_BYTES
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite


async def note(client: Client, product_id: str, message: str, level: str = "INFO") -> None:
    request = log_pb2.AppendLogRequest(
        product_id=product_id, level=f"LOG_LEVEL_{level}", message=message
    )
    await flows.logs(client).AppendLog(request)


async def found(client: Client, **fields: Any) -> list[str]:
    answer = await flows.logs(client).ListLogs(log_pb2.ListLogsRequest(**fields))
    return [line.message for line in answer.logs]


async def exported(client: Client, **fields: Any) -> list[log_pb2.ExportLogsResponse]:
    request = log_pb2.ExportLogsRequest(**fields)
    return [answer async for answer in flows.logs(client).ExportLogs(request)]


async def one_product(suite: Suite) -> tuple[Client, str]:
    await suite.serve("assets", "pipeline")
    ada = suite.client("ada")
    return ada, (await flows.create(ada)).id


async def test_lines_are_found_by_action_text_and_time(suite: Suite) -> None:
    ada, product_id = await one_product(suite)
    await note(ada, product_id, "100% Wool_seam", "WARNING")
    assert await found(ada, action="note") == ["100% Wool_seam"]
    assert await found(ada, text="0% wool_") == ["100% Wool_seam"]
    assert await found(ada, text="%Wool") == []  # no character stands for others
    assert await found(ada, min_level=log_pb2.LOG_LEVEL_WARNING) == ["100% Wool_seam"]

    past, future = Timestamp(seconds=1_000_000_000), Timestamp(seconds=4_000_000_000)
    assert len(await found(ada, created_from=past, created_before=future)) == 2
    assert await found(ada, created_before=past) == []
    request = log_pb2.ListLogsRequest(created_from=future, created_before=past)
    await refused(flows.logs(ada).ListLogs(request), StatusCode.INVALID_ARGUMENT, "created_from")


async def test_an_export_has_every_line_once_in_answers_that_clients_take(suite: Suite) -> None:
    ada, product_id = await one_product(suite)
    await suite.change(
        "INSERT INTO pipeline.logs (id, owner, product_id, phase, level, message, action, details,"
        " actor) SELECT gen_random_uuid(), 'user:ada', %s, 0, 'info', 'line ' || n, 'test',"
        " jsonb_build_object('note', repeat('m', 16000)), 'tests' FROM generate_series(1, 600) n",
        (product_id,),
    )
    answers = await exported(ada, product_id=product_id, action="test")
    lines = [line for answer in answers for line in answer.logs]
    assert sorted(line.message for line in lines) == sorted(f"line {n}" for n in range(1, 601))
    assert len(answers) > 2 and max(answer.ByteSize() for answer in answers) < ANSWER_BYTES + 5000

    admin = suite.client("olga", role="admin")
    theirs = await exported(admin, owner="user:ada")
    assert sum(len(answer.logs) for answer in theirs) == 601
    assert await exported(suite.client("eve"), product_id=product_id) == []
    request = log_pb2.ExportLogsRequest(owner="user:ada")
    stream = flows.logs(suite.client("eve")).ExportLogs(request)
    await refused(stream.read(), StatusCode.NOT_FOUND, "owner")


async def test_lines_are_removed_by_level_once_they_were_kept_long_enough(suite: Suite) -> None:
    ada, product_id = await one_product(suite)
    for level in ("DEBUG", "INFO", "WARNING", "ERROR"):
        for _ in range(3):
            await note(ada, product_id, level, level)
    await suite.change("UPDATE pipeline.logs SET created_at = now() - interval '10 days'")
    await note(ada, product_id, "new", "DEBUG")

    suite.overrides |= {"log_debug_days": 9, "log_warning_days": 9, "log_error_days": 11}
    settings = suite.settings("pipeline", "worker")
    db = Database(settings, "pipeline")
    await db.open()
    try:
        assert await LogPruner(db, settings, chunk=2).run() == 6
    finally:
        await db.close()
    left = await found(ada, action="note")
    assert sorted(left) == ["ERROR"] * 3 + ["INFO"] * 3 + ["new"]
