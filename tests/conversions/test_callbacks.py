"""Callbacks of hosted providers: what is genuine has the job ask at once, and nothing that a
callback says is believed. What signs them here is a library of each scheme."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.conversions.v1 import conversion_pb2, job_pb2, provider_pb2_grpc
from atelier.conversions.v1 import provider_pb2 as pb
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.jwk import KeySet, OKPKey
from pydantic import ValidationError
from standardwebhooks import Webhook

from services.conversions.providers import polling, verifying
from tests.calls import refused
from tests.conversions import flows
from tests.conversions.asked import ALL, Q
from tests.conversions.queues import KEY, FalQueue, FashnQueue, Queue, ReplicateQueue, serving
from tests.conversions.test_polled import NAMES, configure
from tests.conversions.test_providers import calls_of, try_on
from tests.suite import Client, Suite

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
FAL, STRANGER = OKPKey.generate_key("Ed25519"), OKPKey.generate_key("Ed25519")
CALLED = "https://shop.example/callbacks"
LIES = {"status": "OK", "output": "https://evil.example/x.png", "payload": {"images": []}}


def of_fal(body: bytes, at: datetime | None = None, key: OKPKey = FAL) -> dict[str, str]:
    seconds = str(int((at or datetime.now(UTC)).timestamp()))
    signed = "\n".join(["delivery-1", "user-1", seconds, hashlib.sha256(body).hexdigest()])
    private = key.private_key
    assert isinstance(private, Ed25519PrivateKey)
    return {
        "X-Fal-Webhook-Request-Id": "delivery-1",
        "X-Fal-Webhook-User-Id": "user-1",
        "X-Fal-Webhook-Timestamp": seconds,
        "X-Fal-Webhook-Signature": private.sign(signed.encode()).hex(),
    }


def of_replicate(body: bytes, at: datetime | None = None, secret: str = SECRET) -> dict[str, str]:
    at = at or datetime.now(UTC)
    return {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": Webhook(secret).sign("msg_1", at, body.decode()),
    }


def genuine(kind: type[Queue], named: str) -> tuple[dict[str, str], bytes]:
    """Returns a callback about the call of this id, as its provider sends it."""
    field = "request_id" if kind is FalQueue else "id"
    body = json.dumps({**LIES, field: named}).encode()
    headers: dict[type[Queue], Any] = {FalQueue: of_fal, ReplicateQueue: of_replicate}
    return headers[kind](body) if kind in headers else {}, body


IDS: Mapping[type[Queue], str] = {
    FalQueue: "request-1",
    ReplicateQueue: "prediction1",
    FashnQueue: "prediction-1-u1",
}


async def deliver(
    web: Client, provider: str, headers: Mapping[str, str], body: bytes
) -> pb.DeliverCallbackResponse:
    request = pb.DeliverCallbackRequest(provider=provider, headers=headers, body=body)
    stub: Any = web.stub(provider_pb2_grpc.ProviderServiceStub)
    answer: pb.DeliverCallbackResponse = await stub.DeliverCallback(request)
    return answer


@asynccontextmanager
async def polled_once(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, kind: type[Q], made: Path, directory: Path
) -> AsyncIterator[tuple[Q, Client, Client, conversion_pb2.Conversion]]:
    """A try-on whose provider was asked once and will be again in a minute. Yields the provider,
    the web front, ada and the try-on."""
    monkeypatch.setattr(polling, "_FIRST_PAUSE_SECONDS", 60.0)
    monkeypatch.setattr(polling, "_LONGEST_PAUSE_SECONDS", 60.0)
    async with serving(kind(made)) as queue:
        jwks = KeySet([FAL]).as_dict(private=False)
        queue.files["/jwks.json"] = json.dumps(jwks).encode()
        queue.files["/v1/webhooks/default/secret"] = json.dumps({"key": SECRET}).encode()
        queue.polls_at_work = 1
        urls = {"fal_jwks_url": f"{queue.url}/jwks.json", "model_callback_url": CALLED}
        configure(suite, queue.url, {"conversion": [NAMES[kind]]}, **urls)
        await flows.start(suite)
        ada, web = suite.client("ada"), suite.as_token(suite.keys.worker_token("web"))
        started = await try_on(ada, directory)
        async with asyncio.timeout(20):
            while not queue.polls:
                await asyncio.sleep(0.02)
        yield queue, web, ada, started


@pytest.mark.long
@ALL
async def test_a_callback_has_the_job_ask_its_provider_at_once(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    made: Path,
    tmp_path: Path,
    kind: type[Queue],
) -> None:
    async with polled_once(suite, monkeypatch, kind, made, tmp_path) as (queue, web, ada, started):
        answer = await deliver(web, NAMES[kind], *genuine(kind, IDS[kind]))
        assert not answer.started_job
        done = await flows.until(ada, started.id, *flows.FINISHED, seconds=20)

        # The result is what the provider answered, and not what the callback said.
        assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
        assert done.result_asset_id and "evil" not in str(done)
        [call] = await calls_of(ada, job_id=done.id)
        assert call.state == pb.PROVIDER_CALL_STATE_ANSWERED
        asked = queue.created[0]
        if kind is ReplicateQueue:
            assert queue.bodies[0]["webhook"] == f"{CALLED}/replicate"
            assert queue.bodies[0]["webhook_events_filter"] == ["completed"]
        else:
            named = "fal_webhook" if kind is FalQueue else "webhook_url"
            escaped = f"https%3A%2F%2Fshop.example%2Fcallbacks%2F{NAMES[kind]}"
            assert f"?{named}={escaped} " in asked.line

        polls = len(queue.polls)
        again = deliver(web, NAMES[kind], *genuine(kind, IDS[kind]))
        if kind is FashnQueue:
            await refused(again, NOT_FOUND, "open call of fashn")
        else:
            # It has the name of the first one, and is answered as that was.
            assert await again == answer
        assert len(queue.polls) == polls


@pytest.mark.long
async def test_what_is_not_genuine_changes_nothing(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, made: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(verifying, "_SOONEST_SECONDS", 0.0)
    async with polled_once(suite, monkeypatch, FalQueue, made, tmp_path) as (queue, web, ada, one):
        headers, body = genuine(FalQueue, IDS[FalQueue])
        late = datetime.now(UTC) - timedelta(seconds=400)
        before = await calls_of(ada, job_id=one.id)

        for wrong in (
            of_fal(body, key=STRANGER),
            of_fal(body, at=late),
            of_fal(body + b" "),
            {**headers, "X-Fal-Webhook-User-Id": "user-2"},
            {},
        ):
            refusal = await refused(deliver(web, "fal", wrong, body), INVALID, "fal sent it")
            assert refusal.fields == ["headers"]
        for unread in (b"[]", b"{", b'{"request_id": 7}', b"\xff", b"[" * 100_000):
            call = deliver(web, "fal", of_fal(unread), unread)
            assert (await refused(call, INVALID)).fields == ["body"]
        large = body + b" " * (3 * 1024 * 1024)
        assert (await refused(deliver(web, "fal", of_fal(large), large), INVALID)).fields == [
            "body"
        ]
        await refused(deliver(web, "fal", *genuine(FalQueue, "request-2")), NOT_FOUND, "request-2")
        await refused(deliver(web, "fal", *genuine(FalQueue, "%")), NOT_FOUND)
        await refused(deliver(web, "gemini", headers, body), NOT_FOUND, "provider")
        await refused(deliver(web, "local", headers, body), INVALID, "doesn't call back")
        for nobody in (ada, suite.client("olga", "admin")):
            denied = grpc.StatusCode.PERMISSION_DENIED
            await refused(deliver(nobody, "fal", headers, body), denied)

        assert len(queue.polls) == 1 and await calls_of(ada, job_id=one.id) == before
        assert (await flows.read(ada, one.id)).state == job_pb2.JOB_STATE_PROCESSING
        assert KEY not in str(before)


@pytest.mark.long
async def test_a_job_that_was_put_off_starts_at_once(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, made: Path, tmp_path: Path
) -> None:
    async with polled_once(suite, monkeypatch, FalQueue, made, tmp_path) as (_, web, ada, started):
        await suite.stop_work("conversions")
        suite.sql(
            "SET search_path TO conversions_jobs; UPDATE procrastinate_jobs SET status = 'todo',"
            " scheduled_at = now() + interval '1 hour' WHERE task_name = 'conversions';"
            " RESET search_path"
        )
        answer = await deliver(web, "fal", *genuine(FalQueue, IDS[FalQueue]))
        assert answer.started_job
        await suite.work("conversions")
        done = await flows.until(ada, started.id, *flows.FINISHED, seconds=20)
        assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message


@pytest.mark.long
async def test_keys_that_cannot_be_fetched_are_said_so(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, made: Path, tmp_path: Path
) -> None:
    away = polled_once(suite, monkeypatch, ReplicateQueue, made, tmp_path)
    async with away as (queue, web, _, _):
        del queue.files["/v1/webhooks/default/secret"]
        call = deliver(web, "replicate", *genuine(ReplicateQueue, IDS[ReplicateQueue]))
        refusal = await refused(call, grpc.StatusCode.UNAVAILABLE, "replicate")
        assert KEY not in refusal.text


@pytest.mark.parametrize("url", ["http://shop.example", "https://a b", "https://a?b=c", "shop"])
def test_where_providers_call_back_is_an_https_url(suite: Suite, url: str) -> None:
    suite.overrides["model_callback_url"] = url
    with pytest.raises(ValidationError, match="https URL"):
        suite.settings("conversions", "app")
