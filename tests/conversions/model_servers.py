"""Model servers that speak atelier.models.v1: the example as a process, and one that does what a
test says."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from atelier.models.v1 import model_pb2 as pb
from atelier.models.v1 import model_pb2_grpc

from tests.suite import ROOT

EXAMPLE = ROOT / "examples" / "model-server" / "server.py"


@contextmanager
def example(token: str = "") -> Iterator[str]:
    """Runs the example and yields its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "gen"), "MODEL_SERVER_TOKEN": token}
    process = subprocess.Popen(
        [sys.executable, EXAMPLE, "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line.startswith("serving paste on "), line
        yield line.split()[-1]
    finally:
        process.terminate()
        assert process.wait(10) == 0
        process.stdout.close()


Outcome = Callable[["Scripted", str], AsyncIterator[pb.GetRunResponse]]


def answering(*answers: pb.GetRunResponse) -> Outcome:
    async def run(_server: "Scripted", _run_id: str) -> AsyncIterator[pb.GetRunResponse]:
        for each in answers:
            yield each

    return run


def picture(content: bytes, chunk: int = 1 << 20, **fields: Any) -> list[pb.GetRunResponse]:
    """Returns the answers that bring a picture."""
    outcome = pb.RunOutcome(picture=pb.PictureResult(size_bytes=len(content)), **fields)
    chunks = [content[at : at + chunk] for at in range(0, len(content), chunk)]
    return [pb.GetRunResponse(outcome=outcome), *(pb.GetRunResponse(chunk=each) for each in chunks)]


def judging(
    judge: Callable[[pb.RunHead, list[int]], pb.GetRunResponse], otherwise: Outcome | None = None
) -> Outcome:
    """Answers moderations as `judge` does, which is given the head and the sizes of the pictures,
    and every other run as `otherwise` does."""

    async def run(server: "Scripted", run_id: str) -> AsyncIterator[pb.GetRunResponse]:
        at = [each.run_id for each in server.started].index(run_id)
        if server.started[at].task == "moderation":
            yield judge(server.started[at], server.received[at])
        elif otherwise:
            async for each in otherwise(server, run_id):
                yield each

    return run


PASSED = pb.GetRunResponse(outcome=pb.RunOutcome(passed=pb.PassedResult()))


def failure(kind: int, message: str, **fields: Any) -> pb.GetRunResponse:
    failed = pb.RunFailure(kind=kind, message=message, **fields)  # type: ignore[arg-type]
    return pb.GetRunResponse(outcome=pb.RunOutcome(failure=failed))


@dataclass
class Scripted(model_pb2_grpc.ModelServiceServicer):
    """A server that answers GetRun as `outcome` says. `started` has the heads that it took,
    `received` the bytes of their pictures, `asked` the ids of runs that were asked for. `refuse`
    is called first for every StartRun."""

    outcome: Outcome
    refuse: Callable[[Any], Awaitable[None]] | None = None
    address: str = ""
    started: list[pb.RunHead] = field(default_factory=list)
    received: list[list[int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    forgets: bool = False
    tasks: tuple[str, ...] = ("conversion",)

    async def ListTasks(self, request: Any, context: Any) -> pb.ListTasksResponse:
        return pb.ListTasksResponse(tasks=[pb.Task(name=name) for name in self.tasks])

    async def StartRun(self, request: Any, context: Any) -> pb.StartRunResponse:
        head = pb.RunHead()
        sizes: list[int] = []
        async for each in request:
            if each.HasField("head"):
                head = each.head
                sizes = [0] * len(head.pictures)
            else:
                assert len(each.chunk.data) <= 1 << 20
                sizes[each.chunk.picture - 1] += len(each.chunk.data)
        if self.refuse:
            await self.refuse(context)
        self.started.append(head)
        self.received.append(sizes)
        return pb.StartRunResponse()

    async def GetRun(self, request: Any, context: Any) -> AsyncIterator[pb.GetRunResponse]:
        self.asked.append(request.run_id)
        known = request.run_id in [each.run_id for each in self.started]
        if self.forgets or not known:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such run")
        async for each in self.outcome(self, request.run_id):
            yield each

    async def CancelRun(self, request: Any, context: Any) -> pb.CancelRunResponse:
        self.cancelled.append(request.run_id)
        return pb.CancelRunResponse()

    async def until(self, what: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not what():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(
    server: Scripted, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[Scripted]:
    running = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    model_pb2_grpc.add_ModelServiceServicer_to_server(server, running)
    if credentials:
        bound = running.add_secure_port(f"127.0.0.1:{port}", credentials)
    else:
        bound = running.add_insecure_port(f"127.0.0.1:{port}")
    host = "localhost" if credentials else "127.0.0.1"
    server.address = f"{host}:{bound}"
    await running.start()
    try:
        yield server
    finally:
        await running.stop(0)
