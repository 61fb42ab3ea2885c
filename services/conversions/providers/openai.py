"""Provider `openai`: the OpenAI API, and servers that speak it: vLLM-omni, SGLang, LocalAI.

Pictures without input come from images/generations, pictures from pictures from images/edits,
analyses from chat/completions with a JSON schema, and judgements from moderations. Documented at
https://platform.openai.com/docs/api-reference/images (read November 2026).
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from services.conversions import rules
from services.conversions.providers import findings, instructions, templates
from services.conversions.providers.api import Api, Json, item, numbers
from services.conversions.providers.contract import (
    AnalysisRequest,
    Call,
    Found,
    Model,
    ModerationRequest,
    Picture,
    PictureRequest,
    ProviderFailed,
)
from services.conversions.providers.pictures import Pictures
from shared.imaging import ImagingPool
from shared.outbound import Reply
from shared.settings import Settings

NAME = "openai"
_MOST_PICTURES = 16
_CATEGORY = 100  # characters of what names categories
_MODERATION_SECONDS = 60.0  # a judgement takes about one
_MODERATED_TEXT = 20_000  # characters that one request judges; what is longer is judged in parts
_QUALITIES = {"draft": "low", "standard": "medium", "high": "high"}
_FROM_PICTURES = (rules.CONVERSION_TASK, "generation.sketch")
# Of a 429 and a 400: no wait helps, the operator must act.
_ACCOUNT_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "invalid_api_key"}
)
_REFUSAL_CODES = frozenset({"moderation_blocked", "content_policy_violation"})


def offers(settings: Settings) -> Mapping[str, str]:
    """Returns the tasks that the settings let this provider do, each with its model."""
    own_server = settings.openai_url != type(settings).model_fields["openai_url"].default
    if not settings.openai_api_key.get_secret_value() and not own_server:
        return {}
    found: dict[str, str] = {}
    if settings.openai_image_model:
        found["generation.image"] = settings.openai_image_model
        if settings.openai_edits != "none":
            found |= dict.fromkeys(_FROM_PICTURES, settings.openai_image_model)
    if settings.openai_text_model:
        found |= dict.fromkeys(findings.TASKS, settings.openai_text_model)
    if NAME in settings.moderation and settings.openai_moderation_model:
        found[rules.MODERATION_TASK] = settings.openai_moderation_model
    return found


class OpenAI:
    name = NAME

    def __init__(self, settings: Settings, pool: ImagingPool, seconds: float) -> None:
        key = settings.openai_api_key.get_secret_value()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.tasks = offers(settings)
        self._settings = settings
        self._api = Api(settings, NAME, settings.openai_url, headers, key)
        self._pictures = Pictures(pool, settings)
        self._seconds = seconds

    async def close(self) -> None:
        await self._api.close()

    async def cancel(self, handle: str) -> None:
        """There is nothing to ask: a call ends with its connection."""

    async def picture(self, request: PictureRequest, call: Call) -> Picture:
        model = self.tasks[request.task]
        shown = request.pictures[:_MOST_PICTURES]
        sent = await self._pictures.sent(shown, request.directory)
        fields = self._fields(request, model)
        await call.begins(model)
        if sent and self._settings.openai_edits == "multipart":
            files = [
                ("image[]", (f"picture-{number}.jpg", each.content, each.mime_type))
                for number, each in enumerate(sent, start=1)
            ]
            form = [*((name, str(value)) for name, value in fields.items()), *files]
            reply = await self._api.send(
                "POST", "/images/edits", seconds=self._seconds, form=form, billed=True
            )
        else:
            pictures = {"ref_images": [each.base64 for each in sent]} if sent else {}
            reply = await self._api.send(
                "POST",
                "/images/generations",
                seconds=self._seconds,
                content={**fields, **pictures},
                billed=True,
            )
        answer = self._answer(reply, call)
        path = await self._result(answer, request.directory)
        parameters = {**fields, "pictures_sent": len(shown)}
        seed = request.seed if "seed" in fields else None
        return await self._pictures.received(path, request, Model(model, ""), parameters, seed=seed)

    def _fields(self, request: PictureRequest, model: str) -> dict[str, Json]:
        fields: dict[str, Json] = {
            "model": model,
            "prompt": instructions.picture(request),
            "size": _size(request),
            "n": 1,
        }
        if self._settings.openai_response_format:
            fields["response_format"] = "b64_json"
        else:
            fields["output_format"] = request.file_format
            if request.quality:
                fields["quality"] = _QUALITIES[request.quality]
        if self._settings.openai_seed and request.seed is not None:
            fields["seed"] = request.seed
        return fields

    async def _result(self, answer: Json, directory: Path) -> Path:
        """Writes the picture of the answer to a file and returns its path."""
        path = directory / "answer"
        content, url = (item(answer, "data", 0, name) for name in ("b64_json", "url"))
        if isinstance(content, str) and content:
            try:
                path.write_bytes(base64.b64decode(content, validate=True))
            except binascii.Error:
                content = None
        elif isinstance(url, str) and url:
            await self._api.fetch(url, path)
            return path
        if not content:
            raise ProviderFailed(
                rules.BAD_ANSWER,
                "openai answered without a picture",
                charge=rules.POSSIBLY_CHARGED,
            )
        return path

    async def analysis(self, request: AnalysisRequest, call: Call) -> Found:
        model = self.tasks[request.task]
        text, schema = findings.question(request)
        sent = await self._pictures.sent(request.pictures, request.directory)
        pictures = [{"type": "image_url", "image_url": {"url": each.data_uri}} for each in sent]
        content = {
            "model": model,
            "messages": [{"role": "user", "content": [{"type": "text", "text": text}, *pictures]}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "findings", "strict": True, "schema": schema},
            },
        }
        await call.begins(model)
        reply = await self._api.send(
            "POST", "/chat/completions", seconds=self._seconds, content=content, billed=True
        )
        answer = self._answer(reply, call)
        choice = item(answer, "choices", 0)
        refusal = item(choice, "message", "refusal")
        if refusal or item(choice, "finish_reason") == "content_filter":
            said = self._api.clean(refusal) or "its content filter"
            raise ProviderFailed(
                rules.REFUSED,
                f"openai refused to answer: {said}",
                category="content_filter" if not refusal else "refusal",
                charge=rules.CHARGED,
            )
        words = item(choice, "message", "content")
        version = str(item(answer, "model") or "")[:100]
        return findings.answered(request, words, Model(model, version), text)

    async def moderate(self, request: ModerationRequest) -> None:
        """Has words and pictures judged, one request each: the model takes one picture at a time.
        OpenAI doesn't charge for it."""
        text = request.text
        for start in range(0, len(text), _MODERATED_TEXT):
            part = text[start : start + _MODERATED_TEXT]
            await self._judge("its text", {"type": "text", "text": part})
        sent = await self._pictures.sent(request.pictures, request.directory)
        for number, each in enumerate(sent, start=1):
            shown = {"type": "image_url", "image_url": {"url": each.data_uri}}
            await self._judge(f"picture {number} ({each.role})", shown)

    async def _judge(self, what: str, part: Json) -> None:
        """Raises ProviderFailed: REFUSED if the part of a job is flagged."""
        seconds = min(self._seconds, _MODERATION_SECONDS)
        content = {"model": self.tasks[rules.MODERATION_TASK], "input": [part]}
        reply = await self._api.send("POST", "/moderations", seconds=seconds, content=content)
        if reply.status != 200:
            raise self._refused(reply, billed=False)
        results = item(self._api.json(reply), "results")
        flags = [item(each, "flagged") for each in results] if isinstance(results, list) else []
        if not flags or not all(isinstance(each, bool) for each in flags):
            raise ProviderFailed(rules.BAD_ANSWER, "openai answered without a judgement")
        if any(flags):
            categories = self._api.clean(", ".join(_flagged(results)))[:_CATEGORY]
            raise ProviderFailed(rules.REFUSED, f"{what} is flagged", category=categories)

    def _answer(self, reply: Reply, call: Call) -> Json:
        """Returns the JSON of a successful answer, and notes its usage. Raises ProviderFailed."""
        if reply.status != 200:
            raise self._refused(reply)
        answer = self._api.json(reply, billed=True)
        call.used(**numbers(item(answer, "usage")))
        return answer

    def _refused(self, reply: Reply, *, billed: bool = True) -> ProviderFailed:
        try:
            answer = self._api.json(reply)
        except ProviderFailed:
            return self._api.failed(reply, "", billed=billed)
        error = item(answer, "error")
        said = item(error, "message") or item(answer, "detail") or item(answer, "message")
        code = str(item(error, "code") or item(error, "type") or "")
        failure = self._api.failed(reply, str(said or ""), billed=billed)
        if code in _ACCOUNT_CODES:
            failure.error_class = rules.ACCOUNT
        if code in _REFUSAL_CODES:
            details = item(error, "moderation_details")
            categories = item(details, "categories")
            failure.error_class = rules.REFUSED
            named = categories if isinstance(categories, list) and categories else [code]
            failure.category = ", ".join(map(str, named))[:_CATEGORY]
            if item(details, "moderation_stage") == "output":  # the picture was made
                failure.charge = rules.POSSIBLY_CHARGED
        return failure


def _flagged(results: Json) -> list[str]:
    """Returns the names of the categories that a judgement flags."""
    named = [item(each, "categories") for each in results]
    return sorted(
        {name for each in named if isinstance(each, dict) for name, flag in each.items() if flag}
    )


def _size(request: PictureRequest) -> str:
    """Returns width and height in pixels; `auto`, the shape of the first picture, where no ratio
    was asked for."""
    width, height = templates.size(request)
    if width is None:
        return "auto" if request.pictures else "1024x1024"
    return f"{width}x{height}"
