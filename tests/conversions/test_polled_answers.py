"""What the providers fashn, fal and replicate send, and what each answer of theirs means."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from services.conversions.providers import polling, registry, replicate
from shared.settings import Settings
from tests.conversions.asked import ALL, DRESS, Asking, Recorded, configured
from tests.conversions.queues import (
    AWAY,
    HTML,
    KEY,
    Answer,
    FalQueue,
    FashnQueue,
    Queue,
    ReplicateQueue,
)

VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"


@ALL
async def test_a_job_is_created_once_asked_for_until_it_is_done_and_its_usage_noted(
    ask: Asking, kind: type[Queue]
) -> None:
    async with ask(kind) as asked:
        asked.queue.polls_at_work = 2
        picture = await asked.picture()
    assert (len(asked.queue.created), len(asked.call.handles)) == (1, 1)
    assert asked.call.model == asked.provider.tasks["conversion"] == picture.model.name
    assert asked.call.progress == [polling.AT_WORK], "progress is told when it changes"
    assert asked.call.usage in ({"credits": 2}, {"billable_units": 1.5}, {"predict_time": 4.5})
    assert picture.path.read_bytes()[:2] == b"\xff\xd8"
    assert picture.source_type == "compositeWithTrainedAlgorithmicMedia"
    assert "base64" not in json.dumps(picture.parameters).replace("return_base64", "")


@ALL
async def test_the_handle_of_an_earlier_attempt_is_asked_for_and_nothing_is_created(
    ask: Asking, kind: type[Queue]
) -> None:
    async with ask(kind) as asked:
        await asked.picture()
        [handle] = asked.call.handles
        asked.call = Recorded(handle=handle)
        await asked.picture()
    assert (len(asked.queue.created), asked.call.model) == (1, "")


@ALL
@pytest.mark.parametrize(
    "hiccup", [AWAY, HTML, Answer(429, {"detail": "slow down"}, {"retry-after": "0"})]
)
async def test_a_poll_that_fails_in_passing_ends_nothing(
    ask: Asking, kind: type[Queue], hiccup: Answer
) -> None:
    async with ask(kind) as asked:
        asked.queue.hiccups = [hiccup, hiccup]
        await asked.picture()
    assert len(asked.queue.created) == 1


async def test_a_page_in_place_of_a_result_at_fal_is_not_the_result(ask: Asking) -> None:
    async with ask(FalQueue) as asked:
        asked.queue.hiccups = [Answer(200, {"status": "COMPLETED"}), HTML]
        asked.queue.hiccups += [Answer(200, {"status": "COMPLETED"}), AWAY]
        await asked.picture()
    assert (len(asked.queue.created), len(asked.queue.polls)) == (1, 6)


@ALL
async def test_a_job_that_never_ends_is_out_of_time_and_possibly_charged(
    ask: Asking, kind: type[Queue]
) -> None:
    async with ask(kind, seconds=0.2) as asked:
        asked.queue.polls_at_work = 1000
        failed = await asked.failure()
        await asked.provider.cancel(asked.call.handles[0])
    assert (failed.error_class, failed.charge) == ("TIMED_OUT", "possible")
    if kind is not FashnQueue:  # which can't be asked to
        [cancelled] = asked.queue.cancelled
        assert cancelled == f"{asked.call.handles[0]}/cancel"


@ALL
async def test_a_result_that_cannot_be_asked_for_now_is_kept_for_the_next_attempt(
    ask: Asking, kind: type[Queue]
) -> None:
    async with ask(kind, seconds=0.2) as asked:
        asked.queue.hiccups = [AWAY] * 1000
        failed = await asked.failure()
        assert (failed.error_class, failed.charge) == ("UNAVAILABLE", "charged")
        asked.queue.hiccups = [asked.queue.unauthorised()]
        asked.call = Recorded(handle=asked.call.handles[0])
        failed = await asked.failure()
        assert (failed.error_class, failed.charge) == ("ACCOUNT", "charged")


@ALL
async def test_a_job_that_the_provider_forgot_may_have_cost_money(
    ask: Asking, kind: type[Queue]
) -> None:
    async with ask(kind) as asked:
        asked.queue.hiccups = [Answer(404, {"detail": "Not found", "error": "NotFound"})]
        failed = await asked.failure()
    assert (failed.error_class, failed.charge) == ("BAD_ANSWER", "possible")


@ALL
@pytest.mark.parametrize(
    ("answer", "error_class", "charge"),
    [
        (HTML, "BAD_ANSWER", "possible"),
        (Answer(200, {}), "BAD_ANSWER", "possible"),
        (Answer(200, {"id": "../me", "response_url": "..", "urls": 7}), "BAD_ANSWER", "possible"),
        (AWAY, "UNAVAILABLE", "none"),
        (Answer(401, {"detail": f"{KEY}?"}), "ACCOUNT", "none"),
        (Answer(402, {"detail": "pay"}), "ACCOUNT", "none"),
        (Answer(404, {"detail": "no such model"}), "ACCOUNT", "none"),
        (Answer(400, {"detail": "no"}), "BAD_INPUT", "none"),
        (Answer(429, {"detail": "slow"}, {"retry-after": "7"}), "RATE_LIMITED", "none"),
    ],
)
async def test_a_job_that_is_not_taken(
    ask: Asking, kind: type[Queue], answer: Answer, error_class: str, charge: str
) -> None:
    async with ask(kind) as asked:
        asked.queue.instead = [answer]
        failed = await asked.failure()
    assert (failed.error_class, failed.charge) == (error_class, charge)
    assert failed.retry_after == (7 if answer.status == 429 else 0)
    assert asked.call.model and not asked.call.handles and not asked.queue.polls


@ALL
@pytest.mark.parametrize(
    ("where", "word"),
    [
        ("https://elsewhere.example/made.png", "isn't its own"),
        ("https://fal.media.elsewhere.example/made.png", "isn't its own"),
        ("http://127.0.0.1:9999/made.png", "isn't its own"),
        ("data:text/html;base64,PGh0bWw+", "not a picture"),
        ("data:image/png;base64,%%%", "without a picture"),
        ("file:///etc/passwd", "without a picture"),
        (None, "without a picture"),
    ],
)
async def test_a_result_elsewhere_or_that_is_no_picture_is_a_fault(
    ask: Asking, kind: type[Queue], where: str | None, word: str
) -> None:
    async with ask(kind) as asked:
        outcomes = {
            FashnQueue: {"status": "completed", "output": [where]},
            FalQueue: {"images": [{"url": where}]},
            ReplicateQueue: {"status": "succeeded", "output": where},
        }
        asked.queue.outcome = Answer(200, outcomes[kind])
        failed = await asked.failure()
    assert (failed.error_class, failed.charge) == ("BAD_ANSWER", "charged")
    assert word in failed.message


FAILED = FashnQueue.failed
RAISED = FalQueue.raised


@pytest.mark.parametrize(
    ("name", "error_class"),
    [
        ("ContentModerationError", "REFUSED"),
        ("ImageLoadError", "BAD_INPUT"),
        ("PoseError", "BAD_INPUT"),
        ("InputValidationError", "BAD_INPUT"),
        ("PipelineError", "BAD_ANSWER"),
        ("InternalServerError", "BAD_ANSWER"),
        ("3rdPartyProviderError", "BAD_ANSWER"),
        ("ThirdPartyError", "BAD_ANSWER"),
        ("SomethingNew", "BAD_ANSWER"),
    ],
)
async def test_what_fashn_says_when_a_prediction_failed(
    ask: Asking, name: str, error_class: str
) -> None:
    async with ask(FashnQueue) as asked:
        asked.queue.outcome = asked.queue.failed(name)
        failed = await asked.failure()
    assert (failed.error_class, failed.charge) == (error_class, "none")
    assert failed.category == (name if error_class == "REFUSED" else "")
    assert f"it is as it is ({name})" in failed.message


@pytest.mark.parametrize(
    ("error", "error_class"),
    [
        ("RateLimitExceeded", "RATE_LIMITED"),
        ("ConcurrencyLimitExceeded", "RATE_LIMITED"),
        ("OutOfCredits", "ACCOUNT"),
    ],
)
async def test_fashn_has_three_reasons_for_429(ask: Asking, error: str, error_class: str) -> None:
    async with ask(FashnQueue) as asked:
        asked.queue.instead = [Answer(429, {"error": error, "message": "no"})]
        failed = await asked.failure()
    assert failed.error_class == error_class


async def test_other_models_of_fashn_take_other_words(ask: Asking) -> None:
    fields = {"style": "relaxed", "resolution": "2K"}
    async with ask(FashnQueue, fashn_model="tryon-max", fields=fields) as asked:
        picture = await asked.picture()
    [body] = asked.queue.bodies
    assert body["model_name"] == "tryon-max" == picture.model.name
    inputs = body["inputs"]
    assert (inputs["prompt"], inputs["resolution"]) == ("Style: relaxed", "2k")
    assert inputs["product_image"] != inputs["model_image"]


@pytest.mark.parametrize(
    ("answer", "error_class", "charge", "category"),
    [
        (RAISED("content_policy_violation"), "REFUSED", "possible", "content_policy_violation"),
        (
            RAISED("content_policy_violation", categories=["sexual", "hate"]),
            "REFUSED",
            "possible",
            "sexual, hate",
        ),
        (RAISED("image_too_small"), "BAD_INPUT", "possible", ""),
        (RAISED("internal_server_error", 500), "BAD_ANSWER", "none", ""),
        (RAISED("generation_timeout", 504), "TIMED_OUT", "none", ""),
        (
            Answer(504, {"detail": "late", "error_type": "request_timeout"}),
            "TIMED_OUT",
            "none",
            "",
        ),
        (
            Answer(503, {"detail": "gone", "error_type": "runner_disconnected"}),
            "UNAVAILABLE",
            "none",
            "",
        ),
        (
            Answer(400, {"detail": "not now"}, {"x-fal-retryable": "true"}),
            "UNAVAILABLE",
            "none",
            "",
        ),
    ],
)
async def test_what_an_app_of_fal_raises(
    ask: Asking, answer: Answer, error_class: str, charge: str, category: str
) -> None:
    async with ask(FalQueue) as asked:
        asked.queue.outcome = answer
        failed = await asked.failure()
    assert (failed.error_class, failed.charge, failed.category) == (error_class, charge, category)
    assert len(asked.queue.polls) == 2, "an error that is kept as the result isn't asked for again"


async def test_a_locked_account_at_fal_is_the_operators_affair(ask: Asking) -> None:
    locked = "User is locked. Reason: Exhausted balance. Top up your balance."
    async with ask(FalQueue) as asked:
        asked.queue.instead = [Answer(403, {"detail": locked})]
        failed = await asked.failure()
    assert failed.error_class == "ACCOUNT" and "Exhausted balance" in failed.message


@pytest.mark.parametrize(
    ("error", "status", "error_class", "charge", "category"),
    [
        ("NSFW content detected in all outputs", "failed", "REFUSED", "possible", "nsfw"),
        ("flagged as sensitive (E005)", "failed", "REFUSED", "possible", "E005"),
        ("CUDA out of memory", "failed", "BAD_ANSWER", "possible", ""),
        ("interrupted; please retry (code: PA)", "failed", "BAD_ANSWER", "possible", ""),
        ("", "canceled", "BAD_ANSWER", "possible", ""),
        ("", "aborted", "TIMED_OUT", "none", ""),
    ],
)
async def test_what_replicate_says_when_a_prediction_failed(
    ask: Asking, error: str, status: str, error_class: str, charge: str, category: str
) -> None:
    async with ask(ReplicateQueue) as asked:
        asked.queue.outcome = asked.queue.failed(error, status)
        failed = await asked.failure()
    assert (failed.error_class, failed.charge, failed.category) == (error_class, charge, category)
    assert asked.call.usage == {"predict_time": 1.0}


@pytest.mark.parametrize(
    ("answer", "error_class", "retry_after"),
    [
        (
            Answer(429, {"detail": "Request was throttled. Your rate limit resets in ~30s."}),
            "RATE_LIMITED",
            30,
        ),
        (Answer(422, {"title": "Input validation failed", "detail": "- person"}), "BAD_INPUT", 0),
        (Answer(422, {"title": "Invalid version or not permitted", "detail": "?"}), "ACCOUNT", 0),
    ],
)
async def test_what_replicate_says_to_a_request(
    ask: Asking, answer: Answer, error_class: str, retry_after: float
) -> None:
    async with ask(ReplicateQueue) as asked:
        asked.queue.instead = [answer]
        failed = await asked.failure()
    assert (failed.error_class, failed.retry_after) == (error_class, retry_after)


async def test_replicate_gets_large_pictures_as_files_and_says_how_far_it_is(
    ask: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicate, "_WITHIN_BYTES", 1000)
    models = {"conversion": {"model": f"studio/dress:{VERSION}", "input": DRESS}}
    async with ask(ReplicateQueue, replicate_models=models, fields={"seed": 7}) as asked:
        asked.queue.logs = "  0%|          | 0/20\n 50%|█████     | 10/20 [00:01<00:01]"
        asked.queue.polls_at_work = 1
        picture = await asked.picture()
    [asked_for] = asked.queue.created
    assert asked_for.line.split()[1] == "/v1/predictions"
    files = [f"https://api.replicate.com/v1/files/file{number}" for number in (1, 2)]
    given = {"person": files[0], "garment": files[1], "seed": 7, "n": 1}
    assert asked.queue.bodies == [{"version": VERSION, "input": given}]
    assert asked.call.progress == [pytest.approx(0.65)]
    assert (picture.model.name, picture.model.version, picture.seed) == (
        "studio/dress",
        "5c7d5dc6",
        7,
    )
    assert picture.parameters["person"] == "picture 1"


async def test_an_attempt_that_is_cancelled_while_it_submits_keeps_the_handle(
    ask: Asking,
) -> None:
    async with ask(FalQueue) as asked:
        asked.queue.create_seconds = 0.3
        working = asyncio.create_task(asked.picture())
        while not asked.queue.created:
            await asyncio.sleep(0.01)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
    assert asked.call.handles == ["/fal-ai/fashn/requests/request-1"]


async def test_an_app_of_fal_is_given_what_the_operator_wrote(ask: Asking) -> None:
    paint = {
        "prompt": "{prompt}",
        "image_urls": ["{references}"],
        "size": {"width": "{width}", "height": "{height}", "unit": "{resolution}"},
        "seed": "{seed}",
        "style": "{style}",
        "output_format": "{format}",
        "steps": 30,
    }
    models = {"generation.image": {"app": "fal-ai/paint/edit", "input": paint}}
    fields = {"prompt": "a harbour", "pictures": [], "aspect_ratio": "16:9", "file_format": "png"}
    async with ask(FalQueue, task="generation.image", fal_models=models, fields=fields) as asked:
        assert set(asked.provider.tasks) == {"conversion", "generation.image"}
        picture = await asked.picture()
    [body] = asked.queue.bodies
    assert body.pop("prompt").startswith("a harbour\n")
    size = {"width": 1024, "height": 576}
    assert body == {"image_urls": [], "size": size, "output_format": "png", "steps": 30}
    assert asked.queue.created[0].line.split()[1] == "/fal-ai/paint/edit"
    assert (picture.model.name, picture.seed) == ("fal-ai/paint/edit", 42)
    assert picture.parameters["size"] == size


@pytest.mark.parametrize(
    ("setting", "models", "word"),
    [
        ("fal_models", {"conversion": {"app": "a/b", "input": {"x": "{user}"}}}, "no {cloth}"),
        (
            "fal_models",
            {"conversion": {"app": "a/b", "input": {"x": ["{user}", "{cloth}"], "y": "{mood}"}}},
            "{mood}",
        ),
        ("fal_models", {"painting": {"app": "a/b", "input": {}}}, "painting"),
        ("fal_models", {"analysis.seo": {"app": "a/b", "input": {}}}, "analysis.seo"),
        ("replicate_models", {"generation.sketch": {"model": "a/b", "input": {}}}, "no {source}"),
    ],
)
def test_a_template_that_cannot_work_stops_the_start(
    setting: str, models: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError, match="ATELIER_") as wrong:
        registry.routes(Settings(**configured("http://127.0.0.1:9", **{setting: models})))
    assert word in str(wrong.value) and setting.upper() in str(wrong.value)


@pytest.mark.parametrize(
    "values",
    [
        {"fal_key": SecretStr("a\nb")},
        {"fashn_api_key": SecretStr("a b")},
        {"replicate_api_token": SecretStr("ключ")},
        {"fal_models": {"conversion": {"app": "no app", "input": {}}}},
        {"replicate_models": {"conversion": {"model": "a/b:latest", "input": {}}}},
    ],
)
def test_a_key_of_two_words_or_a_name_that_is_none_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as wrong:
        Settings(**configured("http://127.0.0.1:9", **values))
    assert next(iter(values)) in str(wrong.value)
