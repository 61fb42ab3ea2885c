"""aimock: a server that nobody here wrote, which speaks the APIs of OpenAI, Gemini and fal."""

import base64
import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests import npm
from tests.suite import free_port


class Aimock:
    """A running server. `answers` says what it answers to whom."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._http = httpx.Client(base_url=self.url, verify=False, timeout=10)

    def answers(self, *fixtures: dict[str, Any]) -> None:
        """Replaces everything that it answers and remembers."""
        self._control("POST", "/reset")
        self._control("POST", "/fixtures", {"fixtures": fixtures})

    def chaos(self, **rates: float) -> None:
        self._control("POST", "/chaos", rates)

    def requests(self, path: str = "") -> list[dict[str, Any]]:
        """Returns what was asked, oldest first."""
        found: list[dict[str, Any]] = self._control("GET", "/journal")
        return [each for each in found if path in each["path"]]

    def _control(self, method: str, path: str, content: object = None) -> Any:
        answer = self._http.request(method, f"/__aimock{path}", json=content)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def close(self) -> None:
        self._http.close()


def picture(match: str, path: Path) -> dict[str, Any]:
    """Answers a prompt that contains `match` with a picture, as OpenAI does."""
    return {
        "match": {"userMessage": match, "endpoint": "image"},
        "response": {"image": {"b64Json": encoded(path)}},
    }


def gemini_picture(match: str, path: Path) -> dict[str, Any]:
    """The same as Gemini does: bytes within its answer, of a type that is said."""
    kind = "image/png" if path.suffix == ".png" else "image/jpeg"
    return {
        "match": {"userMessage": match},
        "response": {"audio": {"b64Json": encoded(path), "contentType": kind}},
    }


def words(match: str, content: object) -> dict[str, Any]:
    """Answers with words, or JSON as words."""
    text = content if isinstance(content, str) else json.dumps(content)
    return {"match": {"userMessage": match}, "response": {"content": text}}


def error(match: str, status: int, message: str, **more: Any) -> dict[str, Any]:
    """Answers a prompt for a picture with an error of OpenAI's form."""
    return {
        "match": {"userMessage": match, "endpoint": "image"},
        "response": {"error": {"message": message, **more}, "status": status},
    }


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


# Its program takes no judgements; they are said to the class that it runs.
_MODERATING = """
import {{ LLMock }} from {module};
const server = new LLMock({{ port: {port}, logLevel: "warn" }});
for (const [words, categories] of Object.entries({flagged}))
  server.onModerate(words, {{ flagged: true, categories, category_scores: {{}} }});
await server.start();
"""


@contextmanager
def moderating(flagged: Mapping[str, Sequence[str]]) -> Iterator[Aimock]:
    """Runs a server that flags texts with one of these words, each with its categories."""
    npm.install()
    port = free_port()
    named = {word: {**dict.fromkeys(of, True), "hate": False} for word, of in flagged.items()}
    module = npm.MODULES / "@copilotkit" / "aimock" / "dist" / "index.js"
    program = _MODERATING.format(
        module=json.dumps(str(module)), port=port, flagged=json.dumps(named)
    )
    with _served(["node", "--input-type=module", "--eval", program], port) as server:
        yield server


@contextmanager
def running(directory: Path) -> Iterator[Aimock]:
    npm.install()
    nothing = directory / "fixtures.json"
    nothing.write_text(
        '{"fixtures": [{"match": {"userMessage": "-"}, "response": {"content": "-"}}]}'
    )
    port = free_port()
    program = npm.MODULES / "@copilotkit" / "aimock" / "dist" / "cli.js"
    command = ["node", str(program), "-p", str(port), "-f", str(nothing), "--log-level", "warn"]
    with _served(command, port) as server:
        yield server


@contextmanager
def _served(command: Sequence[str], port: int) -> Iterator[Aimock]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Aimock(port)
    try:
        for _ in range(200):
            with suppress(httpx.TransportError):
                server.requests()
                break
            time.sleep(0.05)
        yield server
    finally:
        server.close()
        process.terminate()
        process.wait(10)
