"""The page of the model server leads from an empty folder to a server that answers."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator

import grpc
import pytest
from atelier.models.v1 import model_pb2, model_pb2_grpc

from tests.examples.page import BUILD, environment, run, shell
from tests.suite import ROOT, free_port

pytestmark = pytest.mark.examples
FOLDER = ROOT / "examples" / "model-server"
PREPARE, START = re.findall(r"```sh\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def server() -> Iterator[str]:
    """Runs the page's commands on a copy of the folder and yields the server's address."""
    copy = BUILD / "model-server"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("venv", "stubs", "contract"))
    (copy / "token").write_text("a-token")
    dist = f"{ROOT}/dist/"
    moved = PREPARE.replace("cd examples/model-server", f"cd {copy}").replace("../../dist/", dist)
    port = str(free_port())
    start = START.replace("cd examples/model-server", f"cd {copy}").replace("50060", port)
    run({}, moved)
    process = subprocess.Popen(
        shell(start), cwd=ROOT, env=environment({}), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        assert process.stdout.readline().startswith("serving paste on ")
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        process.stdout.close()


async def test_the_page_leads_to_a_server_that_answers_whoever_has_the_token(server: str) -> None:
    async with grpc.aio.insecure_channel(server) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListTasks(model_pb2.ListTasksRequest())
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = [("authorization", "Bearer a-token")]
        answer = await stub.ListTasks(model_pb2.ListTasksRequest(), metadata=metadata)
    assert "conversion" in [each.name for each in answer.tasks]
