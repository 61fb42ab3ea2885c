"""Provider `replicate`: any model at Replicate, with the input that the operator wrote for a task.

Small pictures are sent within the request and others as files, which Replicate deletes by itself.
A result is fetched at once, since Replicate deletes it after an hour. Documented at
https://replicate.com/docs/reference/http (read November 2026).
"""

import re
from collections.abc import Mapping

from services.conversions import rules
from services.conversions.providers import polling, templates
from services.conversions.providers.api import Api, Json, callback_url, item, numbers
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
from shared.imaging import ImagingPool
from shared.model_settings import ReplicateModel
from shared.outbound import Reply
from shared.settings import Settings, WrongSetting

NAME = "replicate"
_RESULT_HOSTS = ("replicate.delivery",)
_WITHIN_BYTES = 256 * 1024  # larger pictures are to be sent as files
_GOING_ON = {"starting": polling.QUEUED, "processing": polling.AT_WORK}
_ENDED = frozenset({"succeeded", "failed", "canceled", "aborted"})
_UNKNOWN_VERSION = "Invalid version or not permitted"  # the title of a 422
# Where models put their picture, in the order of trying.
_PLACES: tuple[tuple[str | int, ...], ...] = (
    ("output",),
    ("output", 0),
    ("output", "images", 0),
    ("output", "image"),
    ("output", "url"),
    ("output", 0, "url"),
)
# An error is words alone.
_REFUSED = re.compile(r"nsfw|safety|flagged|sensitive|moderat", re.IGNORECASE)
_CODE = re.compile(r"\bE\d{3,4}\b")
_RESETS = re.compile(r"resets in ~?(\d+)s")
_PERCENT = re.compile(r"^\s*(\d{1,3})%\s*\|", re.MULTILINE)  # a progress bar of tqdm


def offers(settings: Settings) -> Mapping[str, str]:
    """Returns the tasks that the settings let this provider do, each with its model. Raises
    WrongSetting."""
    if not settings.replicate_api_token.get_secret_value():
        return {}
    for task, model in settings.replicate_models.items():
        if problem := templates.problem(task, model.input):
            raise WrongSetting(f"ATELIER_REPLICATE_MODELS {problem}")
    return {task: _name(model) for task, model in settings.replicate_models.items()}


def _name(model: ReplicateModel) -> str:
    return model.model.partition(":")[0]


class Replicate:
    name = NAME

    def __init__(self, settings: Settings, pool: ImagingPool, seconds: float) -> None:
        token = settings.replicate_api_token.get_secret_value()
        headers = {"Authorization": f"Bearer {token}"}
        self.tasks = offers(settings)
        self._models = settings.replicate_models
        self._api = Api(settings, NAME, settings.replicate_url, headers, token, _RESULT_HOSTS)
        self._pictures = Pictures(pool, settings)
        self._seconds = seconds
        url = callback_url(settings, NAME)
        called = {"webhook": url, "webhook_events_filter": ["completed"]}
        self._callback = called if url else {}

    async def close(self) -> None:
        await self._api.close()

    async def cancel(self, handle: str) -> None:
        reply = await self._api.send("POST", f"{handle}/cancel", seconds=polling.POLL_SECONDS)
        failure = self._api.failed(reply, "")
        # Anything else says that it has ended, or is unknown.
        if reply.status >= 400 and failure.error_class in (rules.UNAVAILABLE, rules.RATE_LIMITED):
            raise failure

    async def analysis(self, request: AnalysisRequest, call: Call) -> Found:
        raise ProviderFailed(
            rules.BAD_INPUT, f"replicate makes pictures; it can't do {request.task}"
        )

    async def picture(self, request: PictureRequest, call: Call) -> Picture:
        model = self._models[request.task]

        async def submit() -> str:
            sent = await self._pictures.sent(request.pictures, request.directory)
            shown = [(each.role, await self._given(each)) for each in sent]
            content = templates.fill(model.input, templates.values_of(request, shown))
            await call.begins(_name(model))
            return await self._submit(model, content)

        reply = await polling.result(call, submit, self._look, name=NAME, seconds=self._seconds)
        answer = self._api.json(reply)
        call.used(**numbers(item(answer, "metrics")))
        if item(answer, "status") != "succeeded":
            raise self._failed(answer)
        found = (item(answer, *place) for place in _PLACES)
        where = next((each for each in found if isinstance(each, str)), "")
        path = request.directory / "answer"
        await polling.save(self._api, where, path)
        return await self._pictures.received(
            path,
            request,
            Model(_name(model), str(item(answer, "version") or "")[:100]),
            templates.described(model.input, request),
            seed=request.seed if "seed" in templates.placeholders(model.input) else None,
        )

    async def _given(self, picture: Sent) -> str:
        """Returns what a model is given for a picture: the picture, or the URL of a file."""
        if len(picture.content) <= _WITHIN_BYTES:
            return picture.data_uri
        form = [("content", (f"{picture.role}.jpg", picture.content, picture.mime_type))]
        reply = await self._api.send("POST", "/v1/files", seconds=polling.POLL_SECONDS, form=form)
        if reply.status not in (200, 201):
            raise self._refused(reply)
        url = item(self._api.json(reply), "urls", "get")
        if not isinstance(url, str):
            text = "replicate took a file, but gave no URL for it"
            raise ProviderFailed(rules.BAD_ANSWER, text)
        return url

    async def _submit(self, model: ReplicateModel, content: Json) -> str:
        name, _, version = model.model.partition(":")
        path = "/v1/predictions" if version else f"/v1/models/{name}/predictions"
        of_version = {"version": version} if version else {}
        reply = await self._api.send(
            "POST",
            path,
            seconds=polling.POLL_SECONDS,
            content={**of_version, **self._callback, "input": content},
            billed=True,
        )
        if reply.status not in (200, 201, 202):
            raise self._refused(reply, billed=True)
        answer = self._api.json(reply, billed=True)
        return polling.path_of(self._api, item(answer, "urls", "get"))

    async def _look(self, handle: str) -> polling.Working | Reply:
        reply = await self._api.send("GET", handle, seconds=polling.POLL_SECONDS)
        if reply.status != 200:
            raise polling.unknown(reply, self._refused(reply))
        answer = self._api.json(reply)
        status = str(item(answer, "status"))
        if status in _ENDED:
            return reply
        bars = _PERCENT.findall(str(item(answer, "logs") or "")[-2000:])
        done = min(int(bars[-1]), 100) / 100 if bars else 0.0
        start = _GOING_ON.get(status, polling.QUEUED)
        return polling.Working(start + (1 - start) * done)

    def _failed(self, answer: Json) -> ProviderFailed:
        """Returns why a prediction came to nothing. Those that ran may be charged."""
        status = str(item(answer, "status"))
        said = self._api.clean(item(answer, "error")) or status
        text = f"replicate: {said}"
        if status == "aborted":
            return ProviderFailed(rules.TIMED_OUT, text)
        failure = ProviderFailed(rules.BAD_ANSWER, text, charge=rules.POSSIBLY_CHARGED)
        if category := _category(said):
            failure.error_class, failure.category = rules.REFUSED, category
        return failure

    def _refused(self, reply: Reply, *, billed: bool = False) -> ProviderFailed:
        """Returns what an answer with an error status means."""
        try:
            answer = self._api.json(reply)
        except ProviderFailed:
            return self._api.failed(reply, "", billed=billed)
        said = str(item(answer, "detail") or item(answer, "title") or "")
        resets = _RESETS.search(said)
        pause = float(resets[1]) if resets else 0.0
        failure = self._api.failed(reply, said, retry_after=pause, billed=billed)
        if item(answer, "title") == _UNKNOWN_VERSION:
            failure.error_class = rules.ACCOUNT
        elif failure.error_class == rules.BAD_INPUT and (category := _category(said)):
            failure.error_class, failure.category = rules.REFUSED, category
        return failure


def _category(said: str) -> str:
    """Returns why a model refuses, by the words of its error; "" if it doesn't."""
    refused = _REFUSED.search(said)
    code = _CODE.search(said) if refused else None
    return code[0] if code else refused[0].lower() if refused else ""
