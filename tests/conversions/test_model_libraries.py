"""The libraries that OpenAI and Google publish take what our providers send as theirs: told to send
the same, they send it to the same place, field by field."""

import asyncio
import base64
import json
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from typing import Any

import openai
import pytest
from google import genai
from google.genai import types as google_types

from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.conversions.test_providers import FOUND, KEY, b64, configure, try_on
from tests.receiver import Receiver, Request, receiving, replying
from tests.suite import Suite

pytestmark = pytest.mark.long


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    return pictures.person(tmp_path / "made.jpg", width=768)


def gemini_answer(part: dict[str, Any]) -> bytes:
    candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}
    return json.dumps({"candidates": [candidate], "modelVersion": "m-1"}).encode()


async def sent_by_both(
    server: Receiver, library: Callable[[dict[str, Any]], object]
) -> tuple[Request, Request]:
    """Returns our request, which is there, and that of a library which is told the same."""
    [ours] = server.requests
    content = {} if b"multipart" in ours.headers["content-type"].encode() else json.loads(ours.body)
    await asyncio.to_thread(library, content)
    theirs = server.requests[-1]
    assert theirs is not ours
    assert theirs.line == ours.line
    return ours, theirs


@pytest.mark.parametrize("task", ["conversion", "analysis"])
async def test_the_library_of_google_sends_what_gemini_is_sent(
    suite: Suite, tmp_path: Path, drawn: Path, task: str
) -> None:
    picture = {
        "inlineData": {
            "mimeType": "image/jpeg",
            "data": base64.b64encode(drawn.read_bytes()).decode(),
        }
    }
    answer = picture if task == "conversion" else {"text": json.dumps(FOUND)}
    async with receiving(replying(200, gemini_answer(answer))) as server:
        url = f"http://127.0.0.1:{server.port}"
        configure(suite, url, {task: ["gemini"]})
        await flows.start(suite)
        ada = suite.client("ada")
        if task == "conversion":
            await try_on(ada, tmp_path, wait=True)
        else:
            await flows.analyse_facts(ada)

        def library(content: dict[str, Any]) -> object:
            client = genai.Client(
                api_key=KEY,
                http_options=google_types.HttpOptions(base_url=url, api_version="v1beta"),
            )
            # These refuse a field that they don't know.
            config = google_types.GenerateContentConfig.model_validate(content["generationConfig"])
            contents = [google_types.Content.model_validate(each) for each in content["contents"]]
            model = server.requests[0].line.split("/models/")[1].partition(":")[0]
            return client.models.generate_content(model=model, contents=contents, config=config)

        ours, theirs = await sent_by_both(server, library)
    assert as_google_reads(json.loads(theirs.body)) == as_google_reads(json.loads(ours.body))
    assert theirs.headers["x-goog-api-key"] == ours.headers["x-goog-api-key"] == KEY


def as_google_reads(value: Any) -> Any:
    """Returns JSON as Google's servers read it: with either spelling of a name, and either alphabet
    of base64."""
    if isinstance(value, list):
        return [as_google_reads(each) for each in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, each in value.items():
        first, *words = name.split("_")
        plain = first + "".join(word.capitalize() for word in words) if first else name
        found[plain] = as_google_reads(each)
        if plain == "data":
            found[plain] = base64.b64decode(each.translate(str.maketrans("-_", "+/")))
    return found


def openai_client(server: Receiver) -> openai.OpenAI:
    return openai.OpenAI(api_key=KEY, base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0)


async def test_the_library_of_openai_sends_what_openai_is_sent_for_a_picture(
    suite: Suite, drawn: Path
) -> None:
    async with receiving(replying(200, b64(drawn.read_bytes()))) as server:
        configure(suite, f"http://127.0.0.1:{server.port}", {"generation": ["openai"]})
        await flows.start(suite)
        ada = suite.client("ada")
        await flows.generate(ada, prompt="a harbour", aspect_ratio="16:9", quality="high")
        ours, theirs = await sent_by_both(
            server, lambda content: openai_client(server).images.generate(**content)
        )
    assert json.loads(theirs.body) == json.loads(ours.body)
    assert theirs.headers["authorization"] == ours.headers["authorization"] == f"Bearer {KEY}"


async def test_the_library_of_openai_sends_what_openai_is_sent_for_an_analysis(
    suite: Suite,
) -> None:
    answer = {"choices": [{"index": 0, "message": {"content": json.dumps(FOUND)}}], "model": "m-1"}
    async with receiving(replying(200, json.dumps(answer).encode())) as server:
        configure(suite, f"http://127.0.0.1:{server.port}", {"analysis": ["openai"]})
        await flows.start(suite)
        await flows.analyse_facts(suite.client("ada"))
        ours, theirs = await sent_by_both(
            server, lambda content: openai_client(server).chat.completions.create(**content)
        )
    assert json.loads(theirs.body) == json.loads(ours.body)


async def test_the_library_of_openai_sends_what_openai_is_sent_with_pictures(
    suite: Suite, tmp_path: Path, drawn: Path
) -> None:
    async with receiving(replying(200, b64(drawn.read_bytes()))) as server:
        configure(suite, f"http://127.0.0.1:{server.port}", {"conversion": ["openai"]})
        await flows.start(suite)
        await try_on(suite.client("ada"), tmp_path, wait=True)
        form = parts(server.requests[0])
        fields = {name: value for name, value in form if isinstance(value, str)}
        files = [value for _, value in form if not isinstance(value, str)]

        def library(_content: dict[str, Any]) -> object:
            known: dict[str, Any] = {**fields, "n": int(fields["n"])}
            return openai_client(server).images.edit(image=files, **known)

        ours, theirs = await sent_by_both(server, library)
    assert len(files) == 2
    assert sorted(map(repr, parts(theirs))) == sorted(map(repr, parts(ours)))


File = tuple[str, bytes, str]  # its name, its bytes and their type


def parts(request: Request) -> list[tuple[str, str | File]]:
    """Returns the fields of a multipart form in their order."""
    head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
    found: list[tuple[str, str | File]] = []
    for part in message_from_bytes(head + request.body).get_payload():
        assert not isinstance(part, str)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        name = str(part.get_param("name", header="content-disposition"))
        file_name = part.get_filename()
        value = (file_name, content, part.get_content_type()) if file_name else content.decode()
        found.append((name, value))
    return found
