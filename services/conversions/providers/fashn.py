"""Provider `fashn`: FASHN's try-on models, submitted to /v1/run and asked for at /v1/status.

Results come within the answer, so that no picture of a person lies at a public URL; FASHN keeps
them for an hour. A failed prediction isn't charged. A call can't be cancelled. Documented at
https://docs.fashn.ai/api-overview (read November 2026).
"""

import re
from collections.abc import Mapping
from urllib.parse import urlencode

from services.conversions import rules
from services.conversions.providers import polling
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
from shared.outbound import Reply
from shared.settings import Settings

NAME = "fashn"
_RESULT_HOSTS = ("cdn.fashn.ai",)
_ID = re.compile(r"[\w-]{1,200}", re.ASCII)
_GOING_ON = {
    "starting": polling.QUEUED,
    "in_queue": polling.QUEUED,
    "processing": polling.AT_WORK,
}
_OUT_OF_CREDITS = "OutOfCredits"  # of a 429: no wait helps
# Why a prediction failed, if it is no fault of FASHN's. What FASHN blames on somebody behind it is
# nearly always their rules for content.
_FAILURES = {
    "ContentModerationError": rules.REFUSED,
    "ImageLoadError": rules.BAD_INPUT,
    "PoseError": rules.BAD_INPUT,
    "InputValidationError": rules.BAD_INPUT,
}


def offers(settings: Settings) -> Mapping[str, str]:
    """Returns the tasks that the settings let this provider do, each with its model."""
    if not settings.fashn_api_key.get_secret_value():
        return {}
    return {rules.CONVERSION_TASK: settings.fashn_model}


class Fashn:
    name = NAME

    def __init__(self, settings: Settings, pool: ImagingPool, seconds: float) -> None:
        key = settings.fashn_api_key.get_secret_value()
        headers = {"Authorization": f"Bearer {key}"}
        self.tasks = offers(settings)
        self._api = Api(settings, NAME, settings.fashn_url, headers, key, _RESULT_HOSTS)
        self._pictures = Pictures(pool, settings)
        self._seconds = seconds
        url = callback_url(settings, NAME)
        self._query = f"?{urlencode({'webhook_url': url})}" if url else ""

    async def close(self) -> None:
        await self._api.close()

    async def cancel(self, handle: str) -> None:
        """FASHN has no way to ask for it: a prediction takes seconds."""

    async def analysis(self, request: AnalysisRequest, call: Call) -> Found:
        raise ProviderFailed(rules.BAD_INPUT, f"fashn makes pictures; it can't do {request.task}")

    async def picture(self, request: PictureRequest, call: Call) -> Picture:
        model = self.tasks[request.task]
        settings = _settings(model, request)

        async def submit() -> str:
            sent = await self._pictures.sent(request.pictures, request.directory)
            pictures = {each.role: each.data_uri for each in sent}
            inputs = {
                "model_image": pictures["user"],
                _cloth_field(model): pictures["cloth"],
                **settings,
            }
            await call.begins(model)
            return await self._submit({"model_name": model, "inputs": inputs})

        reply = await polling.result(call, submit, self._look, name=NAME, seconds=self._seconds)
        credits = reply.headers.get("x-fashn-credits-used", "")
        if credits.isdecimal():
            call.used(credits=float(credits))
        path = request.directory / "answer"
        await polling.save(self._api, item(self._finished(reply), "output", 0), path)
        return await self._pictures.received(path, request, Model(model, ""), dict(settings))

    async def _submit(self, content: Json) -> str:
        reply = await self._api.send(
            "POST",
            f"/v1/run{self._query}",
            seconds=polling.POLL_SECONDS,
            content=content,
            billed=True,
        )
        if reply.status != 200:
            raise self._refused(reply, billed=True)
        answer = self._api.json(reply, billed=True)
        if error := item(answer, "error"):
            text = f"fashn didn't begin: {self._api.clean(error)}"
            raise ProviderFailed(rules.BAD_ANSWER, text)
        handle = item(answer, "id")
        if not isinstance(handle, str) or not _ID.fullmatch(handle):
            text = "fashn took the call, but gave no id to ask for its result with"
            raise ProviderFailed(rules.BAD_ANSWER, text, charge=rules.POSSIBLY_CHARGED)
        return handle

    async def _look(self, handle: str) -> polling.Working | Reply:
        reply = await self._api.send("GET", f"/v1/status/{handle}", seconds=polling.POLL_SECONDS)
        if reply.status != 200:
            raise polling.unknown(reply, self._refused(reply))
        status = item(self._api.json(reply), "status")
        if status in ("completed", "failed", "canceled", "time_out"):
            return reply
        return polling.Working(_GOING_ON.get(str(status), polling.QUEUED))

    def _finished(self, reply: Reply) -> Json:
        """Returns what a prediction came to. Raises ProviderFailed if it failed."""
        answer = self._api.json(reply)
        status = item(answer, "status")
        if status == "completed":
            return answer
        name = str(item(answer, "error", "name") or status)
        text = f"fashn: {self._api.clean(item(answer, 'error', 'message')) or status} ({name[:60]})"
        error_class = _FAILURES.get(
            name, rules.TIMED_OUT if status == "time_out" else rules.BAD_ANSWER
        )
        category = name[:100] if error_class == rules.REFUSED else ""
        raise ProviderFailed(error_class, text, category=category)

    def _refused(self, reply: Reply, *, billed: bool = False) -> ProviderFailed:
        name, said = self._said(reply)
        failure = self._api.failed(reply, said, billed=billed)
        if name == _OUT_OF_CREDITS:
            failure.error_class = rules.ACCOUNT
        return failure

    def _said(self, reply: Reply) -> tuple[str, str]:
        """Returns the name and the message of an error."""
        try:
            answer = self._api.json(reply)
        except ProviderFailed:
            return "", ""
        name, message = str(item(answer, "error") or ""), str(item(answer, "message") or "")
        return name, f"{message} ({name[:60]})" if message and name else message or name


def _cloth_field(model: str) -> str:
    return "garment_image" if model.startswith("tryon-v") else "product_image"


def _settings(model: str, request: PictureRequest) -> dict[str, Json]:
    found: dict[str, Json] = {"output_format": "png", "return_base64": True}
    if not model.startswith("tryon-v"):  # the others follow words, and have sizes
        if request.style:
            found["prompt"] = f"Style: {request.style}"
        if request.resolution:
            found["resolution"] = request.resolution.lower()
    return found
