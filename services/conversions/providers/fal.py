"""Provider `fal`: any app of fal's queue, with the input that the operator wrote for a task.

fal answers with URLs for status, result and cancellation; only their path is taken, on the
configured server. Server errors aren't charged, refused input may be. Documented at
https://fal.ai/docs/documentation/model-apis (read November 2026).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from services.conversions import rules
from services.conversions.providers import polling, templates
from services.conversions.providers.api import Api, Json, callback_url, item
from services.conversions.providers.contract import (
    AnalysisRequest,
    Call,
    Found,
    Model,
    Picture,
    PictureRequest,
    ProviderFailed,
)
from services.conversions.providers.pictures import Pictures
from shared.imaging import ImagingPool
from shared.model_settings import FalModel
from shared.outbound import Reply
from shared.settings import Settings, WrongSetting

NAME = "fal"
_RESULT_HOSTS = ("fal.media",)
_DEFAULTS = {
    rules.CONVERSION_TASK: FalModel(
        app="fal-ai/fashn/tryon/v1.6",
        input={"model_image": "{user}", "garment_image": "{cloth}"},
    )
}
_GOING_ON = {"IN_QUEUE": polling.QUEUED, "IN_PROGRESS": polling.AT_WORK}
# Where apps put their picture, in the order of trying.
_PLACES: tuple[tuple[str | int, ...], ...] = (
    ("images", 0, "url"),
    ("image", "url"),
    ("images", 0),
    ("image",),
    ("output", 0, "url"),
    ("output", "url"),
)
_REFUSAL = "content_policy_violation"
_RUNNER = "runner_"  # how fal's names for trouble with its machines begin
_TIMEOUTS = frozenset({"request_timeout", "startup_timeout", "generation_timeout"})


def offers(settings: Settings) -> Mapping[str, str]:
    """Returns the tasks that the settings let this provider do, each with its model. Raises
    WrongSetting."""
    if not settings.fal_key.get_secret_value():
        return {}
    return {task: model.app for task, model in _models(settings).items()}


def _models(settings: Settings) -> Mapping[str, FalModel]:
    for task, model in settings.fal_models.items():
        if problem := templates.problem(task, model.input):
            raise WrongSetting(f"ATELIER_FAL_MODELS {problem}")
    return {**_DEFAULTS, **settings.fal_models}


class Fal:
    name = NAME

    def __init__(self, settings: Settings, pool: ImagingPool, seconds: float) -> None:
        key = settings.fal_key.get_secret_value()
        headers = {"Authorization": f"Key {key}"}
        self.tasks = offers(settings)
        self._models = _models(settings)
        self._api = Api(settings, NAME, settings.fal_url, headers, key, _RESULT_HOSTS)
        self._pictures = Pictures(pool, settings)
        self._seconds = seconds
        self._callback = callback_url(settings, NAME)

    async def close(self) -> None:
        await self._api.close()

    async def cancel(self, handle: str) -> None:
        reply = await self._api.send("PUT", f"{handle}/cancel", seconds=polling.POLL_SECONDS)
        # 400 and 404: it has ended, or is unknown.
        if reply.status not in (200, 202, 400, 404):
            raise self._api.failed(reply, _error(reply).said)

    async def analysis(self, request: AnalysisRequest, call: Call) -> Found:
        raise ProviderFailed(rules.BAD_INPUT, f"fal makes pictures; it can't do {request.task}")

    async def picture(self, request: PictureRequest, call: Call) -> Picture:
        model = self._models[request.task]

        async def submit() -> str:
            sent = await self._pictures.sent(request.pictures, request.directory)
            shown = [(each.role, each.data_uri) for each in sent]
            content = templates.fill(model.input, templates.values_of(request, shown))
            await call.begins(model.app)
            return await self._submit(model.app, content)

        reply = await polling.result(call, submit, self._look, name=NAME, seconds=self._seconds)
        if units := _number(reply.headers.get("x-fal-billable-units", "")):
            call.used(billable_units=units)
        if reply.status != 200:
            raise self._refused(reply, ended=True)
        answer = self._api.json(reply, billed=True)
        found = (item(answer, *place) for place in _PLACES)
        path = request.directory / "answer"
        await polling.save(self._api, next((each for each in found if each), ""), path)
        return await self._pictures.received(
            path,
            request,
            Model(model.app, ""),
            templates.described(model.input, request),
            seed=_seed(answer),
        )

    async def _submit(self, app: str, content: Json) -> str:
        query = f"?{urlencode({'fal_webhook': self._callback})}" if self._callback else ""
        reply = await self._api.send(
            "POST", f"/{app}{query}", seconds=polling.POLL_SECONDS, content=content, billed=True
        )
        if reply.status != 200:
            raise self._refused(reply, billed=True)
        answer = self._api.json(reply, billed=True)
        return polling.path_of(self._api, item(answer, "response_url"))

    async def _look(self, handle: str) -> polling.Working | Reply:
        seconds = polling.POLL_SECONDS
        reply = await self._api.send("GET", f"{handle}/status", seconds=seconds)
        if reply.status not in (200, 202):
            raise polling.unknown(reply, self._refused(reply))
        state = self._api.json(reply)
        if item(state, "status") != "COMPLETED":
            return polling.Working(_GOING_ON.get(str(item(state, "status")), polling.QUEUED))
        result = await self._api.send("GET", handle, seconds=seconds)
        error = _error(result)
        if result.status in (401, 403, 404):
            raise polling.unknown(result, self._refused(result))
        # An error that the app raised is kept as its result, with a name; any other one may pass.
        named = error.kind or item(state, "error_type") or item(state, "error")
        if result.status == 429 or (result.status >= 500 and not named):
            raise self._api.failed(result, error.said)
        if result.status == 202:
            return polling.Working(polling.AT_WORK)
        if result.status == 200:
            self._api.json(result)  # what is no JSON isn't the result, which may come yet
        return result

    def _refused(
        self, reply: Reply, *, billed: bool = False, ended: bool = False
    ) -> ProviderFailed:
        """Returns what an answer with an error status means. `ended`: it is the app's result."""
        error = _error(reply)
        failure = self._api.failed(reply, error.said, billed=billed)
        if ended and failure.error_class in (rules.UNAVAILABLE, rules.RATE_LIMITED):
            failure.error_class = rules.BAD_ANSWER  # the same input may fail again
        if error.kind == _REFUSAL:
            failure.error_class = rules.REFUSED
            failure.category = ", ".join(error.categories or [_REFUSAL])[:100]
        elif error.kind in _TIMEOUTS:
            failure.error_class = rules.TIMED_OUT
        elif error.kind.startswith(_RUNNER) or reply.headers.get("x-fal-retryable") == "true":
            failure.error_class = rules.UNAVAILABLE
        if reply.status == 422:  # a model may have worked until it found out
            failure.charge = rules.POSSIBLY_CHARGED
        return failure


def _seed(answer: Json) -> int | None:
    """Returns the seed that the app says it used, which is the given one if it takes any."""
    seed = item(answer, "seed")
    known = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63
    return seed if known else None


@dataclass(frozen=True)
class _Error:
    """What fal says about an error: a string and a name if it is fal's own, a list if the model
    raised it."""

    kind: str
    said: str
    categories: Sequence[str]


def _error(reply: Reply) -> _Error:
    try:
        answer = json.loads(reply.body) if reply.status >= 400 else None
    except ValueError:
        answer = None
    detail = item(answer, "detail")
    raised = detail if isinstance(detail, list) else []
    first = next((each for each in raised if item(each, "type") == _REFUSAL), item(raised, 0))
    named = item(answer, "error_type") or reply.headers.get("x-fal-error-type")
    categories = item(first, "categories") or item(first, "ctx", "categories") or []
    return _Error(
        kind=str(item(first, "type") or named or ""),
        said="; ".join(map(_line, raised[:5])) if raised else str(detail or ""),
        categories=[str(each) for each in categories] if isinstance(categories, list) else [],
    )


def _line(raised: Json) -> str:
    place = item(raised, "loc")
    of = ".".join(map(str, place)) if isinstance(place, list) else "input"
    return f"{of}: {item(raised, 'msg')}"


def _number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() else 0.0  # too many digits: inf
