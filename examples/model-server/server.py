"""Serves the model of model.py to Atelier: an implementation of atelier.models.v1.ModelService.

    python server.py [--port 50060] [--host 127.0.0.1]

MODEL_SERVER_TOKEN in the environment is the token that callers must send; without it anyone may
call.

One run after the other has the model. A run is known by the caller's id: whoever starts it again,
or asks for it again, gets the same run. Outcomes are kept in memory for an hour.
"""

import argparse
import hmac
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import model
from atelier.models.v1 import model_pb2 as pb
from atelier.models.v1 import model_pb2_grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

CHUNK = 1 << 20  # bytes; the contract's limit
KEPT_SECONDS = 3600
MOST_WAITING = 16  # runs
BUSY_SECONDS = 10


class Run:
    def __init__(self, head: pb.RunHead) -> None:
        self.head = head
        self.pictures: list[bytearray] = [bytearray() for _ in head.pictures]
        self.changed = threading.Condition()
        self.progress = 0.0
        self.cancelled = False
        self.outcome: pb.RunOutcome | None = None
        self.picture = b""
        self.ended = 0.0

    def advance(self, fraction: float) -> None:
        """Is called by the model between two steps; ends the run if nobody wants it any more."""
        if self.cancelled:
            raise model.Failed(pb.RUN_FAILURE_KIND_CANCELLED, "the run was cancelled")
        with self.changed:
            self.progress = fraction
            self.changed.notify_all()

    def work(self) -> None:
        began = time.monotonic()
        try:
            self.advance(0)
            given = [bytes(each) for each in self.pictures]
            outcome, self.picture = model.run(self.head, given, self.advance)
        except model.Failed as failed:
            failure = pb.RunFailure(kind=failed.kind, message=str(failed), category=failed.category)  # type: ignore[arg-type]
            outcome = pb.RunOutcome(failure=failure)
        except Exception as fault:  # it must not take the next runs with it
            text = f"{type(fault).__name__}: {fault}"[:1000]
            failure = pb.RunFailure(kind=pb.RUN_FAILURE_KIND_FAULT, message=text)
            outcome = pb.RunOutcome(failure=failure)
        outcome.model, outcome.version = model.NAME, model.VERSION
        outcome.usage["seconds"] = time.monotonic() - began
        with self.changed:
            self.outcome, self.ended = outcome, time.monotonic()
            self.pictures.clear()
            self.changed.notify_all()

    def answers(self) -> Iterator[pb.GetRunResponse]:
        told = -1.0
        while self.outcome is None:
            with self.changed:
                if self.outcome is None and self.progress <= told:
                    self.changed.wait(20)
                told = self.progress
            yield pb.GetRunResponse(progress=pb.RunProgress(fraction=told))
        yield pb.GetRunResponse(outcome=self.outcome)
        for start in range(0, len(self.picture), CHUNK):
            yield pb.GetRunResponse(chunk=self.picture[start : start + CHUNK])


class Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()
        self._gpu = ThreadPoolExecutor(1)

    def ListTasks(self, request: Any, context: Any) -> Any:
        tasks = [pb.Task(name=n, model=model.NAME, version=model.VERSION) for n in model.TASKS]
        return pb.ListTasksResponse(tasks=tasks)

    def StartRun(self, requests: Any, context: Any) -> Any:
        run = Run(next(requests).head)
        for each in requests:
            run.pictures[each.chunk.picture - 1] += each.chunk.data
        if run.head.task not in model.TASKS:
            context.abort(grpc.StatusCode.NOT_FOUND, f"this server can't do {run.head.task}")
        sizes = [each.size_bytes for each in run.head.pictures]
        if sizes != [len(each) for each in run.pictures]:
            text = "the pictures don't have the sizes that the head states"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        with self._lock:
            old = time.monotonic() - KEPT_SECONDS
            self._runs = {i: r for i, r in self._runs.items() if not r.ended or r.ended > old}
            if run.head.run_id in self._runs:
                return pb.StartRunResponse()
            if sum(not each.ended for each in self._runs.values()) >= MOST_WAITING:
                self._busy(context)
            self._runs[run.head.run_id] = run
            self._gpu.submit(run.work)
        return pb.StartRunResponse()

    def _busy(self, context: Any) -> None:
        text = f"{MOST_WAITING} runs wait; ask again in {BUSY_SECONDS} s"
        status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=text)
        pause = error_details_pb2.RetryInfo()
        pause.retry_delay.FromSeconds(BUSY_SECONDS)
        status.details.add().Pack(pause)
        details = (("grpc-status-details-bin", status.SerializeToString()),)
        context.set_trailing_metadata(details)
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)

    def GetRun(self, request: Any, context: Any) -> Any:
        run = self._runs.get(request.run_id)
        if run is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such run: start it")
        else:
            yield from run.answers()

    def CancelRun(self, request: Any, context: Any) -> Any:
        if run := self._runs.get(request.run_id):
            run.cancelled = True
        return pb.CancelRunResponse()


class Guard(grpc.ServerInterceptor):
    """Lets only callers with the token in."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}"

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        sent = dict(details.invocation_metadata).get("authorization", "")
        if hmac.compare_digest(sent.encode(), self._expected.encode()):
            return continuation(details)
        # The handler must be of the method's own kind.
        handler = continuation(details)
        kind = "stream" if handler and handler.request_streaming else "unary"
        answers = "stream" if handler and handler.response_streaming else "unary"

        def refuse(_request: Any, context: Any) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")

        return getattr(grpc, f"{kind}_{answers}_rpc_method_handler")(refuse)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=50060)
    options = parser.parse_args()
    token = os.environ.get("MODEL_SERVER_TOKEN", "")
    guards: list[grpc.ServerInterceptor] = [Guard(token)] if token else []
    server = grpc.server(ThreadPoolExecutor(32), interceptors=guards)
    model_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
    port = server.add_insecure_port(f"{options.host}:{options.port}")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    server.start()
    print(f"serving {model.NAME} on {options.host}:{port}", flush=True)
    stop.wait()
    server.stop(2).wait()
    os._exit(0)  # a model can't be interrupted in the middle of a step


if __name__ == "__main__":
    main()
