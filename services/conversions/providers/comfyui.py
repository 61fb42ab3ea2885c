"""Provider `comfyui`: a ComfyUI of the operator's own, which runs the operator's workflows.

The id of a call is the id of the prompt, and stands in the record before the prompt is sent. So a
prompt is found again after a crash of this worker. ComfyUI keeps its queue and history in memory:
one that was restarted doesn't know the prompt, and gets it again. Documented at
https://docs.comfy.org/development/comfyui-server/comms_routes (read November 2026).
"""

import asyncio
import functools
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode
from uuid import UUID

from services.conversions import rules
from services.conversions.providers import workflows
from services.conversions.providers.api import Api, Json, item
from services.conversions.providers.contract import (
    AnalysisRequest,
    Call,
    Found,
    Model,
    Picture,
    PictureRequest,
    ProviderFailed,
)
from services.conversions.providers.pictures import Pictures, Sent
from services.conversions.providers.workflows import Workflow
from shared.imaging import ImagingPool, inspect
from shared.outbound import Reply
from shared.settings import Settings, WrongSetting

NAME = "comfyui"
_SHORT_SECONDS = 30.0  # for a question that is answered at once
_UPLOAD_SECONDS = 120.0
_IMAGING_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.25, 5.0, 1.4  # between two questions, in seconds
_AWAY_SECONDS = 30.0  # a server that restarts is back within these
_MOST_SUBMITS = 3  # of one prompt in one attempt, for a server that restarts again and again
_SEEDS = 1 << 32  # that every node takes


def offers(settings: Settings) -> Mapping[str, str]:
    """Returns the tasks that the settings let this provider do, each with the name of its workflow.
    Raises WrongSetting for a workflow that can't be used."""
    return {task: each.name for task, each in _workflows(settings).items()}


def _workflows(settings: Settings) -> dict[str, Workflow]:
    paths = settings.comfyui_workflows
    if bool(paths) != bool(settings.comfyui_url):
        raise WrongSetting(
            "ATELIER_COMFYUI_URL and ATELIER_COMFYUI_WORKFLOWS belong together: set both or none"
        )
    return {task: workflows.read(task, path) for task, path in paths.items()}


class ComfyUI:
    name = NAME

    def __init__(self, settings: Settings, pool: ImagingPool, seconds: float) -> None:
        self._workflows = _workflows(settings)
        self.tasks = {task: each.name for task, each in self._workflows.items()}
        self._base = settings.comfyui_url.rstrip("/")
        self._api = Api(settings, NAME, self._base, {}, "")
        self._pool = pool
        self._pictures = Pictures(pool, settings)
        self._seconds = seconds

    async def close(self) -> None:
        await self._api.close()

    async def analysis(self, request: AnalysisRequest, call: Call) -> Found:
        """No workflow answers an analysis: `tasks` has none."""
        raise ProviderFailed(rules.BAD_INPUT, f"{NAME} makes pictures; it can't do {request.task}")

    async def cancel(self, handle: str) -> None:
        reply = await self._send("POST", f"/api/jobs/{quote(handle)}/cancel", content={})
        if reply.status != 404:
            return
        # A server before there were jobs. What runs there can be interrupted only by name, since
        # others use the server too.
        await self._send("POST", "/queue", content={"delete": [handle]})
        if handle in _ids(await self._queue(), "queue_running"):
            await self._send("POST", "/interrupt", content={"prompt_id": handle})

    async def picture(self, request: PictureRequest, call: Call) -> Picture:
        workflow = self._workflows[request.task]
        names = workflows.names_of([each.role for each in request.pictures])
        workflows.check_pictures(workflow, names)
        seed = (UUID(call.id).int if request.seed is None else request.seed) % _SEEDS
        named = zip(names, request.pictures, strict=True)
        shown = {name: each for name, each in named if name in workflow.used}
        sent = await self._pictures.sent([*shown.values()], request.directory)
        shape = await self._shape(sent, request) if sent else None
        values = workflows.words(request, seed, shape)
        pictures = dict(zip(shown, sent, strict=True))

        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                entry = await self._run(workflow, values, pictures, call)
        except TimeoutError:
            if not limit.expired():
                raise
            await self._abandon(call.handle)
            text = f"{NAME} gave no result within {self._seconds:g} s"
            raise ProviderFailed(rules.TIMED_OUT, text) from None

        path = request.directory / "answer"
        await self._api.fetch(self._result_url(workflow, entry), path)
        used = {name: value for name, value in values.items() if name in workflow.used}
        parameters = {**used, "workflow": workflow.name, "pictures_sent": len(sent)}
        return await self._pictures.received(
            path,
            request,
            Model(workflow.name, workflow.version),
            parameters,
            seed=seed if "seed" in workflow.used else None,
        )

    async def _shape(self, sent: Sequence[Sent], request: PictureRequest) -> tuple[int, int]:
        """Returns width and height of the first picture."""
        path: Path = request.directory / "first"
        path.write_bytes(sent[0].content)
        facts = await self._pool.run(
            functools.partial(inspect, path, None), timeout=_IMAGING_SECONDS
        )
        return facts.width or 1, facts.height or 1

    async def _run(
        self,
        workflow: Workflow,
        values: Mapping[str, Json],
        pictures: Mapping[str, Sent],
        call: Call,
    ) -> Json:
        """Submits a prompt, or asks for that of an earlier attempt. Returns its entry of the
        history. Raises ProviderFailed."""
        submits = 0
        if not call.handle:
            await call.begins(workflow.name)
            await call.submitted(call.id)
            await self._submit(workflow, values, pictures, call)
            submits = 1
        while True:
            entry = await self._ended(call.handle)
            if entry is not None:
                self._check_status(workflow, entry)
                return entry
            submits += 1
            if submits > _MOST_SUBMITS:
                text = f"{NAME} forgets prompts that it has just taken"
                raise ProviderFailed(rules.BAD_ANSWER, text)
            await self._submit(workflow, values, pictures, call)

    async def _submit(
        self,
        workflow: Workflow,
        values: Mapping[str, Json],
        pictures: Mapping[str, Sent],
        call: Call,
    ) -> None:
        uploaded = {
            name: await self._upload(f"atelier-{call.id}-{name}.jpg", each)
            for name, each in pictures.items()
        }
        graph = workflows.fill(workflow.nodes, {**values, **uploaded})
        content = {"prompt": graph, "prompt_id": call.id, "client_id": "atelier"}
        reply = await self._send("POST", "/prompt", content=content)
        if reply.status != 200:
            raise self._refused(workflow, reply)
        given = item(self._api.json(reply), "prompt_id")
        if not isinstance(given, str) or not re.fullmatch(r"[\w-]{1,100}", given, re.ASCII):
            text = f"{NAME} took a prompt without saying its id"
            raise ProviderFailed(rules.BAD_ANSWER, text)
        if given != call.handle:  # a server that takes no id of its caller's
            await call.submitted(given)

    async def _upload(self, file_name: str, picture: Sent) -> str:
        """Uploads a picture and returns what a node knows it by."""
        form = [
            ("image", (file_name, picture.content, picture.mime_type)),
            ("type", "input"),
            ("overwrite", "true"),
        ]
        reply = await self._api.send("POST", "/upload/image", seconds=_UPLOAD_SECONDS, form=form)
        if reply.status != 200:
            raise self._api.failed(reply, "a picture was not taken")
        answer = self._api.json(reply)
        name, folder = item(answer, "name"), item(answer, "subfolder")
        if not isinstance(name, str) or not name:
            text = f"{NAME} took a picture without saying its name"
            raise ProviderFailed(rules.BAD_ANSWER, text)
        return f"{folder}/{name}" if isinstance(folder, str) and folder else name

    async def _ended(self, handle: str) -> Json:
        """Waits until a prompt has ended and returns its entry of the history; None if the server
        doesn't know it. Raises ProviderFailed."""
        pause, away_since = _FIRST_PAUSE, 0.0
        while True:
            try:
                state, entry = await self._state(handle)
                away_since = 0.0
            except ProviderFailed as failed:
                if failed.error_class not in (rules.UNAVAILABLE, rules.TIMED_OUT):
                    if failed.error_class in rules.PASSING_ERRORS:
                        failed.charge = rules.CHARGED  # it stays open, as below
                    raise
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > _AWAY_SECONDS:
                    # It may go on: so the call stays open, and the next attempt asks.
                    raise ProviderFailed(
                        rules.UNAVAILABLE, failed.message, charge=rules.CHARGED
                    ) from None
                state, entry = "away", None
            if state in ("unknown", "ended"):
                return entry
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * _GROWTH)

    async def _state(self, handle: str) -> tuple[str, Json]:
        """Returns whether a prompt is `waiting`, `ended` (with its entry of the history) or
        `unknown`."""
        reply = await self._send("GET", f"/api/jobs/{quote(handle)}")
        status = ""
        if reply.status == 200:
            status = str(item(self._api.json(reply), "status"))
            if status in ("pending", "in_progress"):
                return "waiting", None
            if status == "cancelled":
                raise ProviderFailed(rules.BAD_ANSWER, f"{NAME}: somebody cancelled the prompt")
        elif reply.status != 404:
            raise self._api.failed(reply, "")
        # Servers before there were jobs answer 404, too. The queue is asked first: a prompt leaves
        # it for the history.
        elif handle in _ids(await self._queue(), "queue_running", "queue_pending"):
            return "waiting", None
        history = await self._send("GET", f"/history/{quote(handle)}")
        if history.status != 200:
            raise self._api.failed(history, "")
        entry = item(self._api.json(history), handle)
        if isinstance(entry, dict):
            return "ended", entry
        if status:
            text = f"{NAME} says that the prompt is {self._api.clean(status)}, and has no result"
            raise ProviderFailed(rules.BAD_ANSWER, text)
        return "unknown", None

    async def _queue(self) -> Json:
        reply = await self._send("GET", "/queue")
        if reply.status != 200:
            raise self._api.failed(reply, "")
        return self._api.json(reply)

    async def _abandon(self, handle: str) -> None:
        try:
            await self.cancel(handle)
        except ProviderFailed:
            return  # the server is away, and the time is up

    async def _send(self, method: str, path: str, *, content: object = None) -> Reply:
        return await self._api.send(method, path, seconds=_SHORT_SECONDS, content=content)

    def _refused(self, workflow: Workflow, reply: Reply) -> ProviderFailed:
        """Returns the failure for a prompt that the server doesn't take: it says which nodes are
        wrong."""
        try:
            answer = self._api.json(reply)
        except ProviderFailed:
            return self._api.failed(reply, "")
        said = [item(answer, "error", "message") or item(answer, "error")]
        nodes = item(answer, "node_errors")
        for node, errors in list(nodes.items())[:3] if isinstance(nodes, dict) else ():
            first = item(errors, "errors", 0)
            said.append(
                f"{workflow.title_of(node)}: {item(first, 'message')}: {item(first, 'details')}"
            )
        return self._api.failed(reply, "; ".join(str(each) for each in said if each))

    def _check_status(self, workflow: Workflow, entry: Json) -> None:
        """Raises ProviderFailed if the prompt failed, with the node that did."""
        messages = item(entry, "status", "messages")
        for message in _list(messages):
            kind, about = item(message, 0), item(message, 1)
            if kind == "execution_error":
                node = workflow.title_of(str(item(about, "node_id")))
                said = self._api.clean(
                    f"{item(about, 'exception_type')}: {item(about, 'exception_message')}"
                )
                raise ProviderFailed(rules.BAD_ANSWER, f"{NAME} failed in {node}: {said}")
            if kind == "execution_interrupted":
                raise ProviderFailed(rules.BAD_ANSWER, f"{NAME}: somebody interrupted the prompt")
        if item(entry, "status", "status_str") == "error":
            raise ProviderFailed(rules.BAD_ANSWER, f"{NAME} failed without saying where")

    def _result_url(self, workflow: Workflow, entry: Json) -> str:
        """Returns the URL of the result: of the node with the title `result`, else of the first
        node that saved a picture, rather than showed one. Raises ProviderFailed."""
        outputs = item(entry, "outputs")
        found = [
            (node, image)
            for node, output in (outputs.items() if isinstance(outputs, dict) else ())
            for image in _list(item(output, "images"))
            if isinstance(item(image, "filename"), str)
        ]
        if workflow.result:
            found = [each for each in found if each[0] == workflow.result]
        found.sort(key=lambda each: item(each[1], "type") != "output")
        if not found:
            where = workflow.title_of(workflow.result) if workflow.result else "any node"
            raise ProviderFailed(rules.BAD_ANSWER, f"{NAME} ended without a picture of {where}")
        image = found[0][1]
        query = {name: str(item(image, name) or "") for name in ("filename", "subfolder", "type")}
        return f"{self._base}/view?{urlencode(query, errors='replace')}"


def _ids(queue: Json, *names: str) -> set[str]:
    """Returns the ids of the prompts in parts of the server's queue."""
    entries = [entry for name in names for entry in _list(item(queue, name))]
    return {str(item(entry, 1)) for entry in entries}


def _list(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list) else ()
