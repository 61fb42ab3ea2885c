"""B4: three WebP and one AVIF from a photograph of 12 megapixels, compared with sharp.

Ours is the worker with everything on: its queue, the limited child process, the stored objects and
rows. sharp only reads and writes files. Both decode once, both use one thread, both are measured in
CPU time.
"""

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
from atelier.assets.v1 import asset_pb2, upload_pb2, upload_pb2_grpc, variant_pb2, variant_pb2_grpc

from bench.figure import CannotRun, Figure, NeedsNode, Report, Rounds, cpu_seconds
from bench.site import Site
from cli.suite import ROOT

_PHOTO = ROOT / "examples" / "photos" / "front.jpg"
_SHARP = ROOT / ".tools" / "sharp"
_SHARP_VERSION = "0.35.5"
_IMAGES = 4
_ROUNDS = 7
_PATIENCE_SECONDS = 60
_CHUNK = 256 * 1024


def variants(report: Report) -> list[Figure]:
    """Measures B4. Raises NeedsNode without Node.js; installs sharp on first use."""
    _install_sharp(report)
    return asyncio.run(_variants(report))


async def _variants(report: Report) -> list[Figure]:
    with Site() as site:
        _, address = site.assets("serve")
        worker, _ = site.assets("work")
        async with grpc.aio.insecure_channel(address) as channel:
            client = _Client(channel, site.authorization)
            await client.upload()
            await client.ready()
            await client.regenerate()
            pairs = []
            for number in range(_ROUNDS):
                before = _tree_cpu(worker.pid)
                for _ in range(_IMAGES):
                    await client.regenerate()
                ours = (_tree_cpu(worker.pid) - before) / _IMAGES
                pairs.append((1 / ours, 1 / _sharp()))
                report(
                    f"round {number + 1} of {_ROUNDS}: {pairs[-1][0]:.2f} images/s, sharp"
                    f" {pairs[-1][1]:.2f}"
                )
            megabytes = max(_peak_megabytes(pid) for pid in _tree(worker.pid))
    what = "12 MP JPEG -> 3 WebP + 1 AVIF, stored / sharp"
    return [
        Rounds(pairs).figure("B4", what, "images/s per core", 1.0, at_most=False),
        Figure(
            "B4",
            "peak memory of a worker process",
            "MB",
            megabytes,
            512,
            note="RSS, the largest of its processes",
        ),
    ]


class _Client:
    """A client with one photograph of one owner."""

    def __init__(self, channel: grpc.aio.Channel, authorization: tuple[str, str]) -> None:
        self._uploads = upload_pb2_grpc.UploadServiceStub(channel)
        self._variants = variant_pb2_grpc.VariantServiceStub(channel)
        self._metadata = (authorization,)
        self._asset_id = ""

    async def upload(self) -> None:
        answer = await self._uploads.Upload(_parts(), metadata=self._metadata)
        self._asset_id = answer.asset.id

    async def regenerate(self) -> None:
        request = variant_pb2.RegenerateVariantsRequest(asset_id=self._asset_id)
        await self._variants.RegenerateVariants(request, metadata=self._metadata)
        await self.ready()

    async def ready(self) -> None:
        request = variant_pb2.ListVariantsRequest(asset_id=self._asset_id)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while True:
                    found = (
                        await self._variants.ListVariants(request, metadata=self._metadata)
                    ).variants
                    if any(variant.state == asset_pb2.VARIANT_STATE_FAILED for variant in found):
                        raise CannotRun(
                            f"the worker failed: {found[0].error_class} {found[0].error_message}"
                        )
                    if all(variant.state == asset_pb2.VARIANT_STATE_READY for variant in found):
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise CannotRun(f"the worker made no variants in {_PATIENCE_SECONDS} s") from None


async def _parts() -> AsyncIterator[upload_pb2.UploadRequest]:
    content = _PHOTO.read_bytes()
    declaration = upload_pb2.UploadDeclaration(
        kind=asset_pb2.ASSET_KIND_PHOTO,
        file_name=_PHOTO.name,
        mime_type="image/jpeg",
        size_bytes=len(content),
    )
    yield upload_pb2.UploadRequest(head=upload_pb2.UploadHead(declaration=declaration))
    for start in range(0, len(content), _CHUNK):
        yield upload_pb2.UploadRequest(chunk=content[start : start + _CHUNK])


def _install_sharp(report: Report) -> None:
    if not shutil.which("node") or not shutil.which("npm"):
        raise NeedsNode
    if (_SHARP / "node_modules" / "sharp" / "package.json").exists():
        return
    report(f"installing sharp {_SHARP_VERSION} into {_SHARP.relative_to(ROOT)}")
    _SHARP.mkdir(parents=True, exist_ok=True)
    command = [
        "npm",
        "install",
        "--prefix",
        str(_SHARP),
        "--no-audit",
        "--no-fund",
        f"sharp@{_SHARP_VERSION}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotRun(f"npm can't install sharp: {done.stderr.strip().splitlines()[-1]}")


def _sharp() -> float:
    """Returns seconds of CPU per image."""
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as results:
        script = Path(__file__).with_name("sharp.mjs")
        command = ["node", str(script), str(_SHARP), str(_PHOTO), results, str(_IMAGES)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotRun(f"sharp failed: {done.stderr.strip()[-300:]}")
    return float(json.loads(done.stdout)) / 1000


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _tree(int(child))


def _tree_cpu(pid: int) -> float:
    return sum(map(cpu_seconds, _tree(pid)))


def _peak_megabytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024
