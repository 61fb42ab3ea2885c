"""`make bench-count`: instructions of the server per call, for B1 and B3, counted by callgrind.

Seconds differ by a tenth from one run to the next; instructions differ by a few in a thousand, so
that a change of 3 % shows on any machine, however busy. They say nothing of caches and waiting: the
figures that count are those of `make bench`.
"""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import grpc
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc, upload_pb2_grpc

from bench.calls import Call, seed, upload_request
from bench.figure import CannotRun
from bench.site import Site
from cli.suite import ROOT

RESULTS = ROOT / "bench-out" / "counts.json"
_WARM_UP = 40
_CALLS = 60
_TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Counter:
    """A server under callgrind, which counts only between `_switch` on and off."""

    pid: int
    dumps: Path

    async def per_call(self, call: Call, calls: int) -> float:
        self._switch("on")
        for _ in range(calls):
            await call()
        self._switch("off")
        return self._counted() / calls

    def _switch(self, to: str) -> None:
        self._control("--instr=" + to)

    def _counted(self) -> int:
        for dump in self.dumps.iterdir():
            dump.unlink()
        self._control("--dump")
        texts = [path.read_text() for path in self.dumps.iterdir()]
        return sum(int(total) for text in texts for total in _TOTALS.findall(text))

    def _control(self, what: str) -> None:
        command = ["callgrind_control", what, str(self.pid)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


async def main() -> None:
    if not shutil.which("callgrind_control"):
        raise CannotRun("callgrind is missing; on Debian: apt-get install valgrind")
    counts = {}
    with Site() as site, tempfile.TemporaryDirectory() as scratch:
        ours, address = _server(site, Path(scratch) / "ours", "services.assets")
        bare, bare_address = _server(site, Path(scratch) / "bare", "bench.bare")
        async with (
            grpc.aio.insecure_channel(address) as channel,
            grpc.aio.insecure_channel(bare_address) as bare_channel,
        ):
            request = asset_pb2.GetAssetRequest(asset_id=await seed(site, address))
            metadata = (site.authorization,)
            get = asset_pb2_grpc.AssetServiceStub(channel).GetAsset
            get_bare = asset_pb2_grpc.AssetServiceStub(bare_channel).GetAsset
            create = upload_pb2_grpc.UploadServiceStub(channel).RequestUpload
            create_bare = upload_pb2_grpc.UploadServiceStub(bare_channel).RequestUpload
            pairs: dict[str, tuple[Call, Call]] = {
                "B1": (lambda: get(request, metadata=metadata), lambda: get_bare(request)),
                "B3": (
                    lambda: create(upload_request(), metadata=metadata),
                    lambda: create_bare(upload_request()),
                ),
            }
            for name, (call, call_bare) in pairs.items():
                counts[name] = [await _count(ours, call), await _count(bare, call_bare)]
    for name, (count, reference) in counts.items():
        ratio = count / reference
        print(f"{name}  {count / 1000:,.0f} k / {reference / 1000:,.0f} k = {ratio:.3f}x")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(counts, indent=1) + "\n")


def _server(site: Site, dumps: Path, module: str) -> tuple[Counter, str]:
    dumps.mkdir()
    below = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "-q"]
    below.append(f"--callgrind-out-file={dumps}/out")
    if module == "services.assets":
        process, address = site.assets("serve", below=below)
    else:
        process, address = site.server(module, below=below)
    return Counter(process.pid, dumps), address


async def _count(counter: Counter, call: Call) -> float:
    """Returns instructions per call, without what only the first calls cost."""
    for _ in range(_WARM_UP):
        await call()
    return await counter.per_call(call, _CALLS)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except CannotRun as problem:
        sys.exit(f"bench-count: {problem}")
