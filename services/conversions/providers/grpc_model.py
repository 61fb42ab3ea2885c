"""Provider `grpc`: a model server of the operator's own, which implements
atelier.models.v1.ModelService. `examples/model-server` is one.

The id of a call is the id of the run, and stands in the record before the run is started. So a run
is found again after a crash of this worker, and started again under the same id after one of the
server: it costs no second run.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any, Literal

import certifi
import grpc
import protovalidate
from atelier.models.v1 import model_pb2 as pb
from atelier.models.v1 import model_pb2_grpc
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from services.conversions import rules
from services.conversions.providers import findings, instructions
from services.conversions.providers.contract import (
    AnalysisRequest,
    Call,
    Found,
    Model,
    ModerationRequest,
    Picture,
    PictureRequest,
    ProviderFailed,
    Unrecorded,
)
from services.conversions.providers.pictures import Pictures, Sent
from services.conversions.rules import Evidence
from shared.formats.texts import storable
from shared.imaging import ImagingPool
from shared.settings import Settings, WrongSetting

NAME = "grpc"
_CHUNK = 1 << 20  # bytes; the contract's limit
_PARAMETERS_BYTES = 16 * 1024
_START_SECONDS = 120.0  # to send the pictures
_SHORT_SECONDS = 10.0  # for a question that is answered at once
_SILENT_SECONDS = 60.0  # after which a run is asked for again
# A line that broke is back within the first pauses, in seconds; a server that restarts within all.
_START_PAUSES = (0.5, 1.0, 2.0)
_PAUSES = (*_START_PAUSES, 4.0, 8.0)
_MOST_STARTS = 3  # of one run in one attempt, for a server that restarts again and again
_PROGRESS_SECONDS = 1.0  # between two reports of progress
_TEXT = 500  # characters of the server's message that are kept
_CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: rules.BAD_INPUT,
    grpc.StatusCode.OUT_OF_RANGE: rules.BAD_INPUT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: rules.RATE_LIMITED,
    grpc.StatusCode.UNAVAILABLE: rules.UNAVAILABLE,
    grpc.StatusCode.CANCELLED: rules.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: rules.TIMED_OUT,
    grpc.StatusCode.UNAUTHENTICATED: rules.ACCOUNT,
    grpc.StatusCode.PERMISSION_DENIED: rules.ACCOUNT,
    grpc.StatusCode.UNIMPLEMENTED: rules.ACCOUNT,
    grpc.StatusCode.FAILED_PRECONDITION: rules.ACCOUNT,
    grpc.StatusCode.NOT_FOUND: rules.ACCOUNT,
}
_FAILURES = {
    pb.RUN_FAILURE_KIND_REFUSED: rules.REFUSED,
    pb.RUN_FAILURE_KIND_BAD_INPUT: rules.BAD_INPUT,
    pb.RUN_FAILURE_KIND_BUSY: rules.RATE_LIMITED,
}


def offers(settings: Settings) -> Mapping[str, str]:
    """Returns the tasks that the settings let this provider do, each with its model. Raises
    WrongSetting if they don't fit together."""
    tasks = settings.models_tasks
    if bool(tasks) != bool(settings.models_address):
        raise WrongSetting(
            "ATELIER_MODELS_ADDRESS and ATELIER_MODELS_TASKS belong together: set both or none"
        )
    for task, model in tasks.items():
        if task not in (*rules.TASKS, rules.MODERATION_TASK):
            known = ", ".join((*rules.TASKS, rules.MODERATION_TASK))
            raise WrongSetting(f"ATELIER_MODELS_TASKS has no task {task[:60]!r}; there are {known}")
        if not 0 < len(model) <= 100:
            raise WrongSetting(f"ATELIER_MODELS_TASKS names a model of 1 to 100 letters for {task}")
    return tasks


@dataclass
class _Result:
    """The end of a run: its outcome, and the bytes of its picture."""

    outcome: pb.RunOutcome
    content: bytearray = field(default_factory=bytearray)


class GrpcModel:
    name = NAME

    def __init__(self, settings: Settings, pool: ImagingPool, seconds: float) -> None:
        self.tasks = offers(settings)
        self._channel = _channel(settings)
        self._server = model_pb2_grpc.ModelServiceStub(self._channel)
        self._token = settings.models_token.get_secret_value()
        self._metadata = [("authorization", f"Bearer {self._token}")] if self._token else []
        self._pictures = Pictures(pool, settings)
        self._seconds = seconds

    async def close(self) -> None:
        await self._channel.close()

    async def cancel(self, handle: str) -> None:
        request = pb.CancelRunRequest(run_id=handle)
        try:
            await self._server.CancelRun(request, timeout=_SHORT_SECONDS, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None

    async def picture(self, request: PictureRequest, call: Call) -> Picture:
        sent = await self._pictures.sent(request.pictures, request.directory)
        head = self._head(request.task, call, sent)
        head.instruction = instructions.picture(request)
        head.prompt = "" if request.task == rules.CONVERSION_TASK else request.prompt
        head.style, head.aspect_ratio = request.style, request.aspect_ratio
        head.quality, head.resolution = request.quality, request.resolution
        head.view = request.view
        if request.at:
            head.at.x, head.at.y = request.at
        if request.seed is not None:
            head.seed = request.seed
        result = await self._run(head, sent, call)
        made = result.outcome.picture
        path = request.directory / "answer"
        path.write_bytes(result.content)
        parameters = {
            **json_format.MessageToDict(made.parameters),
            "instruction": head.instruction,
            "pictures_sent": len(sent),
        }
        picture = await self._pictures.received(
            path,
            request,
            self._model(request.task, result.outcome),
            parameters,
            seed=made.seed if made.HasField("seed") else None,
        )
        return _with_evidence(picture, made.evidence)

    async def analysis(self, request: AnalysisRequest, call: Call) -> Found:
        sent = await self._pictures.sent(request.pictures, request.directory)
        head = self._head(request.task, call, sent)
        head.instruction, schema = findings.question(request)
        head.findings_schema = json.dumps(schema)
        outcome = (await self._run(head, sent, call)).outcome
        model = self._model(request.task, outcome)
        return findings.answered(request, outcome.findings.json, model, head.instruction)

    async def moderate(self, request: ModerationRequest) -> None:
        sent = await self._pictures.sent(request.pictures, request.directory)
        call = Unrecorded(str(uuid.uuid4()))
        head = self._head(rules.MODERATION_TASK, call, sent)
        head.prompt, head.style = request.prompt, request.style
        if request.facts:
            head.instruction = json.dumps(request.facts, ensure_ascii=False)
        await self._run(head, sent, call)

    def _head(self, task: str, call: Call, sent: Sequence[Sent]) -> pb.RunHead:
        pictures = [
            pb.RunPicture(role=each.role, mime_type=each.mime_type, size_bytes=len(each.content))
            for each in sent
        ]
        return pb.RunHead(run_id=call.id, task=task, model=self.tasks[task], pictures=pictures)

    def _model(self, task: str, outcome: pb.RunOutcome) -> Model:
        return Model(self._clean(outcome.model) or self.tasks[task], self._clean(outcome.version))

    async def _run(self, head: pb.RunHead, sent: Sequence[Sent], call: Call) -> _Result:
        """Starts a run, or asks for that of an earlier attempt, and returns its result. Raises
        ProviderFailed."""
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                if not call.handle:
                    await call.begins(head.model)
                    await call.submitted(call.id)
                    await self._start(head, sent)
                result = await self._follow(head, sent, call)
        except TimeoutError:
            if not limit.expired():
                raise
            await self._abandon(head.run_id)
            text = f"{NAME} gave no result within {self._seconds:g} s"
            raise ProviderFailed(rules.TIMED_OUT, text) from None
        outcome = result.outcome
        call.charged = outcome.charged
        call.used(**outcome.usage)
        if outcome.HasField("failure"):
            raise self._failed(outcome.failure, charged=outcome.charged)
        wanted = _result_of(head)
        if not outcome.HasField(wanted):
            raise self._no_result(f"answered without {wanted}")
        if wanted == "picture" and len(result.content) != outcome.picture.size_bytes:
            raise self._no_result("sent less of its picture than it announced")
        return result

    async def _abandon(self, run_id: str) -> None:
        try:
            await self.cancel(run_id)
        except ProviderFailed:
            return  # the server is away, and the time is up

    async def _start(self, head: pb.RunHead, sent: Sequence[Sent]) -> None:
        for pause in (*_START_PAUSES, None):
            try:
                await self._server.StartRun(
                    _parts(head, sent), timeout=_START_SECONDS, metadata=self._metadata
                )
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE and pause is not None:
                    await asyncio.sleep(pause)
                    continue
                failure = self._failure(error)
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    failure.message += await self._what_there_is()
                raise failure from None

    async def _what_there_is(self) -> str:
        """Returns what the server can do, for a message."""
        try:
            answer = await self._server.ListTasks(
                pb.ListTasksRequest(), timeout=_SHORT_SECONDS, metadata=self._metadata
            )
        except grpc.aio.AioRpcError:
            return ""
        names = self._clean(", ".join(each.name for each in answer.tasks)) or "nothing"
        return f"; it says that it can do {names}: set ATELIER_MODELS_TASKS accordingly"

    async def _follow(self, head: pb.RunHead, sent: Sequence[Sent], call: Call) -> _Result:
        """Asks for a run until it has ended. Starts it if the server doesn't know it."""
        pauses, starts = iter(_PAUSES), 0
        while True:
            try:
                return await self._read(head.run_id, call)
            except _Silent:
                continue
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    starts += 1
                    if starts > _MOST_STARTS:
                        raise self._no_result("forgets runs that it has just taken") from None
                    await self._start(head, sent)
                    continue
                failure = self._failure(error)
                pause = next(pauses, None)
                if failure.error_class != rules.UNAVAILABLE or pause is None:
                    if failure.error_class == rules.UNAVAILABLE:
                        # The run may go on: so the call stays open, and the next attempt asks.
                        failure.charge = rules.CHARGED
                    raise failure from None
                await asyncio.sleep(pause)

    async def _read(self, run_id: str, call: Call) -> _Result:
        """Reads one answer of GetRun. Raises AioRpcError, _Silent."""
        result: _Result | None = None
        told = -_PROGRESS_SECONDS
        stream = self._server.GetRun(pb.GetRunRequest(run_id=run_id), metadata=self._metadata)
        try:
            while (answer := await _next(stream)) is not None:
                self._check(answer)
                match answer.WhichOneof("part"):
                    case "progress":
                        if time.monotonic() - told >= _PROGRESS_SECONDS:
                            told = time.monotonic()
                            await call.advances(answer.progress.fraction)
                    case "outcome" if result is None:
                        result = _Result(answer.outcome)
                    case "chunk" if result:
                        result.content += answer.chunk
                        if len(result.content) > result.outcome.picture.size_bytes:
                            raise self._no_result("sent more of its picture than it announced")
                    case _:
                        raise self._no_result("sent the parts of its answer in the wrong order")
        finally:
            stream.cancel()
        if result is None:
            raise self._no_result("ended its answer without an outcome")
        return result

    def _check(self, answer: pb.GetRunResponse) -> None:
        """Raises ProviderFailed if an answer breaks the contract."""
        for violation in protovalidate.collect_violations(answer, fail_fast=True):
            elements = violation.proto.field.elements if violation.proto.field else ()
            path = ".".join(each.field_name for each in elements)
            raise self._no_result(f"broke its contract: {path}: {violation.proto.message}")
        if answer.outcome.picture.parameters.ByteSize() > _PARAMETERS_BYTES:
            raise self._no_result("broke its contract: parameters of more than 16 kB")
        if answer.HasField("outcome"):
            try:
                text = json_format.MessageToJson(answer.outcome)
            except json_format.Error:
                raise self._no_result("broke its contract: a number that isn't finite") from None
            if "\\u0000" in text:
                raise self._no_result("broke its contract: a text with a character NUL")

    def _no_result(self, what: str) -> ProviderFailed:
        return ProviderFailed(rules.BAD_ANSWER, f"{NAME} {what}")

    def _failed(self, failure: pb.RunFailure, *, charged: bool) -> ProviderFailed:
        """Returns the failure that a run ended with."""
        error_class = _FAILURES.get(failure.kind, rules.BAD_ANSWER)
        busy = error_class == rules.RATE_LIMITED  # nothing was done
        return ProviderFailed(
            error_class,
            self._clean(failure.message),
            category=failure.category,
            retry_after=_seconds(failure.retry_after),
            charge=rules.CHARGED if charged and not busy else rules.NOT_CHARGED,
        )

    def _failure(self, error: grpc.aio.AioRpcError) -> ProviderFailed:
        """Returns the failure that a status means."""
        said = self._clean(error.details())
        text = f"{NAME} answered {error.code().name}: {said or 'without a word'}"
        if "larger than max" in said:  # gRPC's own words, with RESOURCE_EXHAUSTED
            return ProviderFailed(rules.BAD_ANSWER, f"{text}; chunks have at most 1 MiB")
        error_class = _CLASSES.get(error.code(), rules.BAD_ANSWER)
        return ProviderFailed(error_class, text, retry_after=_retry_delay(error))

    def _clean(self, text: object) -> str:
        """Returns the server's message as one short line that doesn't show the token."""
        line = " ".join(storable(str(text or "")).split())
        if self._token:
            line = line.replace(self._token, "[token]")
        return line if len(line) <= _TEXT else f"{line[: _TEXT - 1]}…"


def _result_of(head: pb.RunHead) -> Literal["passed", "findings", "picture"]:
    """Returns the field of an outcome that a run must have if it ends well."""
    if head.task == rules.MODERATION_TASK:
        return "passed"
    return "findings" if head.findings_schema else "picture"


class _Silent(Exception):
    """Raised if a server said nothing for a minute."""


async def _next(stream: Any) -> pb.GetRunResponse | None:
    """Returns the next answer; None at the end. Raises _Silent, AioRpcError."""
    try:
        answer = await asyncio.wait_for(stream.read(), _SILENT_SECONDS)
    except TimeoutError:
        raise _Silent from None
    return None if answer is grpc.aio.EOF else answer


async def _parts(head: pb.RunHead, sent: Sequence[Sent]) -> AsyncIterator[pb.StartRunRequest]:
    yield pb.StartRunRequest(head=head)
    for number, each in enumerate(sent, start=1):
        for start in range(0, len(each.content), _CHUNK):
            data = each.content[start : start + _CHUNK]
            yield pb.StartRunRequest(chunk=pb.PictureChunk(picture=number, data=data))


def _with_evidence(picture: Picture, measured: Sequence[pb.RunEvidence]) -> Picture:
    """Returns the picture with the server's figures, which take the place of ours."""
    theirs = [
        Evidence(name=each.name, value=each.value, weight=each.weight, note=each.note)
        for each in measured
    ]
    names = {each["name"] for each in theirs}
    evidence = [*(each for each in picture.evidence if each["name"] not in names), *theirs]
    confidence = rules.capped_confidence(evidence)
    return with_changes(picture, evidence=evidence, confidence=confidence)


def _retry_delay(error: grpc.aio.AioRpcError) -> float:
    """Returns the seconds of a RetryInfo; 0 if there is none."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            info = error_details_pb2.RetryInfo()
            try:
                found = [d for d in status_pb2.Status.FromString(value).details if d.Unpack(info)]
            except DecodeError:
                return 0.0
            return _seconds(info.retry_delay) if found else 0.0
    return 0.0


def _seconds(duration: Duration) -> float:
    return max(0.0, duration.seconds + duration.nanos / 1e9)


def _channel(settings: Settings) -> grpc.aio.Channel:
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_http_proxy", 0),  # the server is the one that was configured
    ]
    if not settings.models_tls:
        return grpc.aio.insecure_channel(settings.models_address, options=options)
    roots = None
    if settings.outbound_ca_file:
        usual = Path(certifi.where()).read_bytes()
        roots = usual + b"\n" + settings.outbound_ca_file.read_bytes()
    credentials = grpc.ssl_channel_credentials(root_certificates=roots)
    return grpc.aio.secure_channel(settings.models_address, credentials, options=options)
