"""A ComfyUI on a real socket, as its pages describe it: queue and history in memory, pictures on
disk, prompts checked before they are taken. Its nodes are a handful of ComfyUI's own, and they do
what they are called."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from tests.receiver import Receiver, Reply, Request, receiving

REQUIRED = {
    "LoadImage": ("image",),
    "ImageScale": ("image", "width", "height"),
    "ImageCompositeMasked": ("destination", "source", "x", "y"),
    "EmptyImage": ("width", "height", "color"),
    "PreviewAny": ("source",),
    "PreviewImage": ("images",),
    "SaveImage": ("images", "filename_prefix"),
}
TRY_ON = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "{user}"}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "{cloth}"}},
    "3": {
        "class_type": "ImageCompositeMasked",
        "inputs": {"destination": ["1", 0], "source": ["4", 0], "x": 40, "y": 40},
    },
    "4": {
        "class_type": "ImageScale",
        "inputs": {"image": ["2", 0], "width": 128, "height": 128},
    },
    "5": {"class_type": "PreviewAny", "inputs": {"source": "{prompt}"}},
    "6": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    "7": {
        "class_type": "SaveImage",
        "inputs": {"images": ["3", 0], "filename_prefix": "atelier/tryon"},
        "_meta": {"title": "Result"},
    },
}
IMAGE = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": "{width}", "height": "{height}", "color": "{seed}"},
    },
    "2": {"class_type": "PreviewAny", "inputs": {"source": "{prompt}"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "made"}},
}


def missing(node: Mapping[str, Any], name: str) -> dict[str, Any]:
    error = {
        "type": "required_input_missing",
        "message": "Required input is missing",
        "details": name,
        "extra_info": {"input_name": name},
    }
    return {"errors": [error], "dependent_outputs": ["7"], "class_type": node["class_type"]}


@dataclass
class Comfy:
    """The server. `old`: it has no jobs and takes no id of its caller's. `fails`: the node that
    raises. `held`: prompts stay in the queue until it is False. `html`: a proxy before it answers
    with a page. `submits` counts the prompts that were taken."""

    directory: Path
    old: bool = False
    fails: str = ""
    held: bool = False
    html: bool = False
    no_history: bool = False
    submits: int = 0
    cancelled: list[str] = field(default_factory=list)
    queue: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    @property
    def uploads(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "input").iterdir())

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        method, target, _ = request.line.split(" ")
        url = urlsplit(target)
        self.seen.append(f"{method} {url.path}")
        if self.html:
            status, kind, body = 200, "text/html", b"<html>log in</html>"
        else:
            self._work()
            status, found = self._route(method, url.path, parse_qs(url.query), request)
            kind = "image/png" if isinstance(found, bytes) else "application/json"
            body = found if isinstance(found, bytes) else json.dumps(found).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    def _route(
        self, method: str, path: str, query: dict[str, list[str]], request: Request
    ) -> tuple[int, Any]:
        last = path.rpartition("/")[2]
        match method, path:
            case "POST", "/upload/image":
                return self._upload(request)
            case "POST", "/prompt":
                return self._prompt(json.loads(request.body))
            case "GET", "/queue":
                entries = [[0, each, graph, {}, []] for each, graph in self.queue.items()]
                return 200, {"queue_running": entries[:1], "queue_pending": entries[1:]}
            case "POST", "/queue" | "/interrupt":
                asked = json.loads(request.body)
                for each in [*asked.get("delete", []), asked.get("prompt_id", "")]:
                    self._cancel(each, running="interrupt" in path)
                return 200, {}
            case "GET", _ if path.startswith("/history/"):
                entry = None if self.no_history else self.history.get(last)
                return 200, {last: entry} if entry else {}
            case "GET", "/view":
                assert query["type"] == ["output"]
                return 200, (self.directory / "output" / query["filename"][0]).read_bytes()
            case "GET", _ if path.startswith("/api/jobs/") and not self.old:
                return self._job(last)
            case "POST", _ if path.endswith("/cancel") and not self.old:
                return 200, {"cancelled": self._cancel(path.split("/")[-2], running=True)}
        return 404, {}

    def _job(self, key: str) -> tuple[int, Any]:
        if key in self.queue:
            return 200, {"id": key, "status": "in_progress"}
        if key not in self.history:
            return 404, {"error": "Job not found"}
        ended = self.history[key]["status"]["status_str"] == "success"
        return 200, {"id": key, "status": "completed" if ended else "failed"}

    def _upload(self, request: Request) -> tuple[int, Any]:
        head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
        parts: Any = BytesParser().parsebytes(head + request.body).get_payload()
        fields = {
            each.get_param("name", header="content-disposition"): each.get_payload(decode=True)
            for each in parts
        }
        [picture] = [each for each in parts if each.get_filename()]
        assert (fields["type"], fields["overwrite"]) == (b"input", b"true")
        (self.directory / "input" / picture.get_filename()).write_bytes(fields["image"])
        return 200, {"name": picture.get_filename(), "subfolder": "", "type": "input"}

    def _prompt(self, asked: dict[str, Any]) -> tuple[int, Any]:
        graph = asked["prompt"]
        errors = {}
        for key, node in graph.items():
            if node["class_type"] not in REQUIRED:
                kind = node["class_type"]
                error = {"type": "missing_node_type", "message": f"Node '{kind}' not found"}
                return 400, {"error": error, "node_errors": {}}
            for name in REQUIRED[node["class_type"]]:
                if name not in node["inputs"]:
                    errors[key] = missing(node, name)
            image = node["inputs"].get("image")
            if node["class_type"] == "LoadImage" and image not in self.uploads:
                errors[key] = missing(node, f"image - Invalid image file: {image}")
        if errors:
            error = {"type": "prompt_outputs_failed_validation"}
            error["message"] = "Prompt outputs failed validation"
            return 400, {"error": error, "node_errors": errors}
        self.submits += 1
        key = f"own-{self.submits}" if self.old else asked["prompt_id"]
        self.queue[key] = graph
        return 200, {"prompt_id": key, "number": self.submits, "node_errors": {}}

    def _cancel(self, key: str, *, running: bool) -> bool:
        if key not in self.queue or (next(iter(self.queue)) == key and not running):
            return False
        del self.queue[key]
        self.cancelled.append(key)
        return True

    def _work(self) -> None:
        """Runs what is queued."""
        while self.queue and not self.held:
            key, graph = next(iter(self.queue.items()))
            entry = {"prompt": [0, key, graph, {}, []], "outputs": {}, "status": {}}
            try:
                entry["outputs"] = self._run(key, graph)
                entry["status"] = {"status_str": "success", "completed": True, "messages": []}
            except RuntimeError as error:
                about = {
                    "prompt_id": key,
                    "node_id": self.fails,
                    "exception_type": "torch.OutOfMemoryError",
                    "exception_message": str(error),
                }
                messages = [["execution_start", {}], ["execution_error", about]]
                entry["status"] = {"status_str": "error", "completed": False, "messages": messages}
            del self.queue[key]
            self.history[key] = entry

    def _run(self, key: str, graph: dict[str, Any]) -> dict[str, Any]:
        def value(given: Any) -> Any:
            return made(given[0]) if isinstance(given, list) else given

        def made(node: str) -> Any:
            if node == self.fails:
                raise RuntimeError("Allocation on device\0")
            inputs = {name: value(each) for name, each in graph[node]["inputs"].items()}
            return getattr(self, f"_{graph[node]['class_type']}")(**inputs)

        outputs = {}
        for node, about in graph.items():
            if about["class_type"].startswith(("Save", "Preview")):
                result = made(node)
                if isinstance(result, Image.Image):
                    saved = about["class_type"] == "SaveImage"
                    name = f"{key}-{node}.png"
                    result.save(self.directory / "output" / name)
                    kind = "output" if saved else "temp"
                    outputs[node] = {"images": [{"filename": name, "subfolder": "", "type": kind}]}
                else:
                    outputs[node] = {"text": [result]}
        return outputs

    def _LoadImage(self, image: str) -> Image.Image:
        return Image.open(io.BytesIO((self.directory / "input" / image).read_bytes()))

    def _ImageScale(self, image: Image.Image, width: int, height: int) -> Image.Image:
        return image.resize((width, height))

    def _ImageCompositeMasked(
        self, destination: Image.Image, source: Image.Image, x: int, y: int
    ) -> Image.Image:
        made = destination.copy()
        made.paste(source, (x, y))
        return made

    def _EmptyImage(self, width: int, height: int, color: int) -> Image.Image:
        assert isinstance(color, int)
        return Image.new("RGB", (width, height), f"#{color % 2**24:06x}")

    def _PreviewAny(self, source: str) -> str:
        return source

    def _PreviewImage(self, images: Image.Image) -> Image.Image:
        return images

    def _SaveImage(self, images: Image.Image, filename_prefix: str) -> Image.Image:
        return images


@asynccontextmanager
async def serving(comfy: Comfy, port: int = 0) -> AsyncIterator[Receiver]:
    for folder in ("input", "output"):
        (comfy.directory / folder).mkdir(exist_ok=True, parents=True)
    reply: Reply = comfy.answer
    async with receiving(reply, port=port) as server:
        yield server


def workflow(path: Path, nodes: Any) -> str:
    """Writes a workflow and returns its path."""
    path.write_text(json.dumps(nodes))
    return str(path)
