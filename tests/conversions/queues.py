"""Servers on a socket of the test that behave as FASHN, the queue of fal and Replicate document it:
they take a job, and say later what it came to. The makers' own libraries drive them, too, so that
they speak what those speak."""

import asyncio
import base64
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.receiver import Request, receiving

KEY = "a-key-that-must-stay-here"


@dataclass
class Answer:
    """`body`: JSON, or bytes as they are."""

    status: int
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        plain = isinstance(self.body, bytes)
        body = self.body if plain else json.dumps(self.body).encode()
        kind = "text/html" if plain else "application/json"
        headers = {"content-type": kind, **self.headers, "content-length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} X\r\n{lines}connection: close\r\n\r\n".encode() + body


HTML = Answer(200, b"<html>a page</html>")
AWAY = Answer(503, b"<html>a page</html>")


class Queue(ABC):
    """A provider's server. `polls_at_work`: how often it answers that it is still at work.
    `outcome`: what a job comes to. `instead` and `hiccups`: what it answers to the next requests
    for a new job, and to the next polls, instead of what it would. `create_seconds`: how long it
    takes to take a job."""

    keeps_key_in = "Bearer {}"

    def __init__(self, picture: Path) -> None:
        self.files = {"/files/made.png": picture.read_bytes()}
        self.files_are_away = False
        self.cancels_are_refused = False
        self.url = ""
        self.polls_at_work = 0
        self.outcome: Answer | None = None
        self.instead: list[Answer] = []
        self.hiccups: list[Answer] = []
        self.create_seconds = 0.0
        self.created: list[Request] = []
        self.polls: list[Request] = []
        self.cancelled: list[str] = []
        self.others: list[Request] = []

    @property
    def picture_url(self) -> str:
        return f"{self.url}/files/made.png"

    @property
    def bodies(self) -> list[Any]:
        """Returns what the requests for new jobs held."""
        return [json.loads(each.body) for each in self.created]

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        method, path = request.line.partition("?")[0].split(" ")[:2]
        if path in self.files:
            file = Answer(200, self.files[path], {"content-type": "image/png"})
            writer.write((AWAY if self.files_are_away else file).encoded())
            return
        if request.headers.get("authorization") != self.keeps_key_in.format(KEY):
            writer.write(self.unauthorised().encoded())
            return
        writer.write((await self._answer(method, path, request)).encoded())

    async def _answer(self, method: str, path: str, request: Request) -> Answer:
        if self.is_create(method, path):
            self.created.append(request)
            await asyncio.sleep(self.create_seconds)
            return self.instead.pop(0) if self.instead else self.create(len(self.created), path)
        if path.endswith("/cancel"):
            self.cancelled.append(path)
            return AWAY if self.cancels_are_refused else self.cancel(path)
        if method == "GET":
            self.polls.append(request)
            return self.hiccups.pop(0) if self.hiccups else self.poll(path)
        self.others.append(request)
        return self.other(method, path)

    @property
    def at_work(self) -> bool:
        return len(self.polls) <= self.polls_at_work

    @abstractmethod
    def is_create(self, method: str, path: str) -> bool: ...

    @abstractmethod
    def create(self, number: int, path: str) -> Answer: ...

    @abstractmethod
    def poll(self, path: str) -> Answer: ...

    def cancel(self, path: str) -> Answer:
        return Answer(404, {"detail": "Not found"})

    def other(self, method: str, path: str) -> Answer:
        return Answer(404, {"detail": "Not found"})

    def unauthorised(self) -> Answer:
        return Answer(401, {"detail": f"{KEY} is no key"})


class FashnQueue(Queue):
    """https://docs.fashn.ai/api-overview/api-fundamentals"""

    credits_used = {"x-fashn-credits-used": "2"}

    def is_create(self, method: str, path: str) -> bool:
        return (method, path) == ("POST", "/v1/run")

    def create(self, number: int, path: str) -> Answer:
        return Answer(200, {"id": f"prediction-{number}-u1", "error": None})

    def poll(self, path: str) -> Answer:
        state: dict[str, Any] = {"id": path.rpartition("/")[2], "error": None}
        if self.at_work:
            return Answer(200, {**state, "status": "processing"})
        content = base64.b64encode(self.files["/files/made.png"]).decode()
        done = {**state, "status": "completed", "output": [f"data:image/png;base64,{content}"]}
        return self.outcome or Answer(200, done, self.credits_used)

    def failed(self, name: str, message: str = "it is as it is", status: str = "failed") -> Answer:
        error = {"name": name, "message": message}
        return Answer(200, {"id": "prediction-1-u1", "status": status, "error": error})

    def unauthorised(self) -> Answer:
        return Answer(401, {"error": "UnauthorizedAccess", "message": f"{KEY} is no key"})


class FalQueue(Queue):
    """https://fal.ai/docs/documentation/model-apis/inference/queue"""

    keeps_key_in = "Key {}"
    state: dict[str, Any] = {}

    def is_create(self, method: str, path: str) -> bool:
        return method == "POST"

    def create(self, number: int, path: str) -> Answer:
        # The path below the app is dropped, and the host is fal's own.
        app = "/".join(path.split("/")[1:3])
        base = f"https://queue.fal.run/{app}/requests/request-{number}"
        urls = {"status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}
        number_in_queue = {"status": "IN_QUEUE", "queue_position": 0}
        answer = {"request_id": f"request-{number}", "response_url": base, **urls}
        return Answer(200, {**answer, **number_in_queue})

    def poll(self, path: str) -> Answer:
        if not path.endswith("/status"):
            made = {"images": [{"url": self.picture_url, "width": 768}], "seed": 42}
            return self.outcome or Answer(200, made, {"x-fal-billable-units": "1.5"})
        if self.at_work:
            return Answer(202, {"status": "IN_PROGRESS", "logs": []})
        return Answer(200, {"status": "COMPLETED", "logs": [], "metrics": {}, **self.state})

    def cancel(self, path: str) -> Answer:
        return Answer(202, {"status": "CANCELLATION_REQUESTED"})

    @staticmethod
    def raised(kind: str, status: int = 422, **more: Any) -> Answer:
        """An error that a model raised."""
        detail = {"loc": ["body", "image"], "msg": "it is as it is", "type": kind, **more}
        return Answer(status, {"detail": [detail]}, {"x-fal-retryable": "false"})


class ReplicateQueue(Queue):
    """https://replicate.com/docs/reference/http"""

    logs = ""

    def is_create(self, method: str, path: str) -> bool:
        return method == "POST" and path.endswith("/predictions")

    def create(self, number: int, path: str) -> Answer:
        return Answer(201, self.prediction(f"prediction{number}", status="starting"))

    def poll(self, path: str) -> Answer:
        name = path.rpartition("/")[2]
        if self.at_work:
            return Answer(200, self.prediction(name, status="processing", logs=self.logs))
        made = {"output": [self.picture_url], "metrics": {"predict_time": 4.5}}
        return self.outcome or Answer(200, self.prediction(name, status="succeeded", **made))

    def cancel(self, path: str) -> Answer:
        return Answer(200, self.prediction(path.split("/")[-2], status="canceled"))

    def other(self, method: str, path: str) -> Answer:
        if (method, path) != ("POST", "/v1/files"):
            return super().other(method, path)
        number = len(self.others)
        file = {"id": f"file{number}", "name": "user.jpg", "content_type": "image/jpeg"}
        rest = {"size": 1, "etag": "x", "checksums": {}, "metadata": {}, "created_at": "2026"}
        urls = {"get": f"https://api.replicate.com/v1/files/file{number}"}
        return Answer(201, {**file, **rest, "urls": urls})

    def prediction(self, name: str = "prediction1", **fields: Any) -> dict[str, Any]:
        get = f"https://api.replicate.com/v1/predictions/{name}"
        return {
            "id": name,
            "model": "studio/dress",
            "version": "5c7d5dc6",
            "input": {},
            "output": None,
            "logs": "",
            "error": None,
            "metrics": {},
            "created_at": "2026-11-28T10:00:00Z",
            "urls": {"get": get, "cancel": f"{get}/cancel"},
            **fields,
        }

    def failed(self, error: str, status: str = "failed") -> Answer:
        metrics = {"predict_time": 1.0}
        return Answer(200, self.prediction(status=status, error=error, metrics=metrics))


Q = TypeVar("Q", bound=Queue)


@asynccontextmanager
async def serving(queue: Q) -> AsyncIterator[Q]:
    async with receiving(queue) as server:
        queue.url = f"http://127.0.0.1:{server.port}"
        yield queue
