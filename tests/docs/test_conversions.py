"""The pages of conversions: their commands work as they stand, with a hosted provider too."""

import asyncio
import json
import os
import re
import subprocess
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.cli.conftest import Command, interrupt, private_command
from tests.cli.test_up import until
from tests.conversions import aimock, comfy, model_servers
from tests.conversions import local_pictures as pictures
from tests.conversions.queues import KEY, FalQueue, FashnQueue, ReplicateQueue, serving
from tests.docs.test_assets import START as ASSETS
from tests.docs.test_assets import blocks
from tests.suite import ROOT

T = TypeVar("T")

START = ROOT / "docs" / "conversions.md"
PAGES = [START, *sorted((ROOT / "docs" / "conversions").rglob("*.md"))]


@contextmanager
def in_thread(*servers: AbstractAsyncContextManager[Any]) -> Iterator[list[Any]]:
    """Runs servers of a test in an event loop of their own, and yields them."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    stack = AsyncExitStack()
    try:
        yield [run(stack.enter_async_context(each)) for each in servers]
    finally:
        run(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Runs one suite for all pages, with the settings of the providers' pages. aimock answers for
    Gemini and OpenAI, servers of the tests for the others."""
    directory = tmp_path_factory.mktemp("docs")
    made = pictures.person(directory / "made.jpg", width=768)
    queues = FashnQueue(made), FalQueue(made), ReplicateQueue(made)
    served = *map(serving, queues), comfy.serving(comfy.Comfy(directory / "comfy"))
    with (
        aimock.running(directory) as mock,
        in_thread(*served) as servers,
        model_servers.example(KEY) as models,
        private_command() as command,
    ):
        mock.answers(
            aimock.gemini_picture("Dress the person", made), aimock.picture("wooden chair", made)
        )
        fashn, fal, replicate, comfyui = servers
        workflow = comfy.workflow(directory / "tryon.json", comfy.TRY_ON)
        model = {"model": "owner/name", "input": {"prompt": "{prompt}"}}
        command.environment |= {
            "ATELIER_GEMINI_API_KEY": KEY,
            "ATELIER_GEMINI_URL": mock.url,
            "ATELIER_OPENAI_API_KEY": KEY,
            "ATELIER_OPENAI_URL": f"{mock.url}/v1",
            "ATELIER_FASHN_API_KEY": KEY,
            "ATELIER_FASHN_URL": fashn.url,
            "ATELIER_FAL_KEY": KEY,
            "ATELIER_FAL_URL": fal.url,
            "ATELIER_REPLICATE_API_TOKEN": KEY,
            "ATELIER_REPLICATE_URL": replicate.url,
            "ATELIER_REPLICATE_MODELS": json.dumps({"generation.image": model}),
            "ATELIER_COMFYUI_URL": f"http://127.0.0.1:{comfyui.port}",
            "ATELIER_COMFYUI_WORKFLOWS": json.dumps({"conversion": workflow}),
            "ATELIER_MODELS_ADDRESS": models,
            "ATELIER_MODELS_TASKS": json.dumps({"conversion": "paste"}),
            "ATELIER_MODELS_TOKEN": KEY,
            "ATELIER_CONSENT_REQUIRED": json.dumps(["analysis"]),
        }
        process = command.start("up")
        try:
            until(process, "Ctrl-C stops")
            yield command
        finally:
            interrupt(process)


@pytest.mark.docs
@pytest.mark.needs_node
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_works_as_it_stands(
    page: Path, running: Command, tmp_path: Path
) -> None:
    """The blocks run in one shell, after those of docs/assets.md and docs/conversions.md; the last
    command of each must succeed."""
    first = [*blocks(ASSETS), *(blocks(START) if page != START else [])]
    lines = ["set -u -o pipefail", *first]
    for number, block in enumerate(blocks(page), start=1):
        lines += ["{", block, f'}} || {{ echo "block {number} failed" >&2; exit 1; }}']
    answer = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=ROOT,
        env={**os.environ, **running.environment},
        capture_output=True,
        text=True,
        timeout=100,
    )

    said = f"{answer.stdout}\n{answer.stderr}"
    assert answer.returncode == 0, said
    assert "Traceback" not in said
    assert said.count("as it should be") == "\n".join(blocks(page)).count("as it should be"), said


def test_every_page_is_listed_and_every_listed_page_is_there() -> None:
    listed = set(re.findall(r"\(conversions/([a-z_]+\.md)\)", START.read_text()))
    assert listed == {page.name for page in (ROOT / "docs" / "conversions").glob("*.md")}
    providers = (ROOT / "docs" / "conversions" / "providers.md").read_text()
    named = set(re.findall(r"\(providers/([a-z_]+\.md)\)", providers))
    assert named == {
        page.name for page in (ROOT / "docs" / "conversions" / "providers").glob("*.md")
    }
