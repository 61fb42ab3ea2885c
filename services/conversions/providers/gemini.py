"""Provider `gemini`: Google's Gemini API, one call of generateContent for each job.

Refusals come with status 200, and a model now and then answers in words where a picture was wanted.
Documented at https://ai.google.dev/api/generate-content (read November 2026).
"""

import base64
import binascii
from collections.abc import Mapping, Sequence

from services.conversions import rules
from services.conversions.providers import findings, instructions
from services.conversions.providers.api import Api, Json, item, numbers
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
from shared.outbound import Reply
from shared.settings import Settings

NAME = "gemini"
_MOST_PICTURES = 14  # that the image models take
# The prompt, or what was being made, is against the provider's rules.
_REFUSALS = frozenset(
    {
        "SAFETY",
        "IMAGE_SAFETY",
        "PROHIBITED_CONTENT",
        "IMAGE_PROHIBITED_CONTENT",
        "RECITATION",
        "IMAGE_RECITATION",
        "BLOCKLIST",
        "SPII",
    }
)
_PICTURE_TASKS = (rules.CONVERSION_TASK, "generation.image", "generation.sketch")


def offers(settings: Settings) -> Mapping[str, str]:
    """Returns the tasks that the settings let this provider do, each with its model."""
    if not settings.gemini_api_key.get_secret_value():
        return {}
    return {
        task: settings.gemini_image_model if task in _PICTURE_TASKS else settings.gemini_text_model
        for task in (*_PICTURE_TASKS, *findings.TASKS)
    }


class Gemini:
    name = NAME

    def __init__(self, settings: Settings, pool: ImagingPool, seconds: float) -> None:
        key = settings.gemini_api_key.get_secret_value()
        self.tasks = offers(settings)
        self._api = Api(settings, NAME, settings.gemini_url, {"x-goog-api-key": key}, key)
        self._pictures = Pictures(pool, settings)
        self._seconds = seconds

    async def close(self) -> None:
        await self._api.close()

    async def cancel(self, handle: str) -> None:
        """There is nothing to ask: a call ends with its connection."""

    async def picture(self, request: PictureRequest, call: Call) -> Picture:
        shown = request.pictures[:_MOST_PICTURES]
        text = instructions.picture(request)
        image: dict[str, str] = {}
        if request.aspect_ratio:
            image["aspectRatio"] = request.aspect_ratio
        if request.resolution:
            image["imageSize"] = request.resolution
        config: dict[str, Json] = {"responseModalities": ["IMAGE"]}
        if image:
            config["imageConfig"] = image
        if request.seed is not None:
            config["seed"] = request.seed
        sent = await self._pictures.sent(shown, request.directory)
        answer = await self._generate(self.tasks[request.task], text, sent, config, call)
        path = request.directory / "answer"
        path.write_bytes(_picture_in(answer))
        parameters = {"instruction": text, "pictures_sent": len(shown), **image}
        return await self._pictures.received(
            path, request, self._model(request.task, answer), parameters, seed=request.seed
        )

    async def analysis(self, request: AnalysisRequest, call: Call) -> Found:
        text, schema = findings.question(request)
        config = {"responseMimeType": "application/json", "responseJsonSchema": schema}
        sent = await self._pictures.sent(request.pictures, request.directory)
        answer = await self._generate(self.tasks[request.task], text, sent, config, call)
        words = "".join(
            item(part, "text") or ""
            for part in item(_first_candidate(answer), "content", "parts") or []
            if not item(part, "thought")
        )
        return findings.answered(request, words, self._model(request.task, answer), text)

    def _model(self, task: str, answer: Json) -> Model:
        return Model(self.tasks[task], str(item(answer, "modelVersion") or "")[:100])

    async def _generate(
        self, model: str, text: str, sent: Sequence[Sent], config: Json, call: Call
    ) -> Json:
        pictures = [
            {"inlineData": {"mimeType": each.mime_type, "data": each.base64}} for each in sent
        ]
        content = {
            "contents": [{"role": "user", "parts": [{"text": text}, *pictures]}],
            "generationConfig": config,
        }
        await call.begins(model)
        reply = await self._api.send(
            "POST",
            f"/v1beta/models/{model}:generateContent",
            seconds=self._seconds,
            content=content,
            billed=True,
        )
        if reply.status != 200:
            raise self._refused(reply)
        answer = self._api.json(reply, billed=True)
        call.used(**numbers(item(answer, "usageMetadata")))
        if reason := item(answer, "promptFeedback", "blockReason"):
            raise ProviderFailed(
                rules.REFUSED,
                f"gemini refused the request: {self._api.clean(reason)}",
                category=str(reason)[:100],
            )
        reason = item(_first_candidate(answer), "finishReason")
        if isinstance(reason, str) and reason in _REFUSALS:
            said = self._api.clean(item(_first_candidate(answer), "finishMessage"))
            raise ProviderFailed(
                rules.REFUSED,
                f"gemini refused to answer: {reason}{f' ({said})' if said else ''}",
                category=reason,
                charge=rules.POSSIBLY_CHARGED,
            )
        return answer

    def _refused(self, reply: Reply) -> ProviderFailed:
        try:
            error = item(self._api.json(reply), "error")
        except ProviderFailed:
            return self._api.failed(reply, "", billed=True)
        failure = self._api.failed(
            reply,
            str(item(error, "message") or ""),
            retry_after=_retry_delay(error),
            billed=True,
        )
        # A key that isn't one is answered with 400.
        reasons = [item(detail, "reason") for detail in _details(error)]
        if "API_KEY_INVALID" in reasons or item(error, "status") == "FAILED_PRECONDITION":
            failure.error_class = rules.ACCOUNT
        return failure


def _first_candidate(answer: Json) -> Json:
    return item(answer, "candidates", 0)


def _details(error: Json) -> list[Json]:
    details = item(error, "details")
    return details if isinstance(details, list) else []


def _retry_delay(error: Json) -> float:
    """Returns the seconds of a RetryInfo, such as `31s`; 0 if there is none."""
    for detail in _details(error):
        text = str(item(detail, "retryDelay") or "")
        if text.endswith("s") and text[:-1].replace(".", "", 1).isdecimal():
            return float(text[:-1])
    return 0.0


def _picture_in(answer: Json) -> bytes:
    """Returns the bytes of the last picture that is not a thought: those may be drafts. Raises
    ProviderFailed if there is none."""
    parts = item(_first_candidate(answer), "content", "parts")
    for part in reversed(parts if isinstance(parts, list) else []):
        data = item(part, "inlineData", "data")
        if isinstance(data, str) and data and not item(part, "thought"):
            try:
                return base64.b64decode(data, validate=True)
            except binascii.Error:
                break
    reason = item(_first_candidate(answer), "finishReason") or "no reason"
    raise ProviderFailed(
        rules.BAD_ANSWER,
        f"gemini answered without a picture ({str(reason)[:60]})",
        charge=rules.POSSIBLY_CHARGED,
    )
