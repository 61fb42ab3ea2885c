"""Secrets of webhooks, and those in a URL, stay out of logs and refusals."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from atelier.webhooks.v1 import webhook_pb2 as pb

from tests import calls
from tests.faults.processes import Processes
from tests.receiver import receiving, replying
from tests.suite import Client, Cluster, DiskServer, Keys, Suite
from tests.webhooks import flows

IN_PATH, IN_QUERY = "canary-path-5e1", "canary-query-9a7"
IN_USERINFO, IN_ANSWER = "canary-user-3c4", "canary-answer-8d2"


@pytest.mark.long
async def test_secrets_of_webhooks_are_not_in_logs_nor_in_refusals(
    cluster: Cluster, keys: Keys, disk: DiskServer, suite: Suite, tmp_path: Path
) -> None:
    """Runs real processes with every log line on, receivers that fail in several ways, and a
    database that goes away."""
    processes = Processes(cluster, suite.database, keys, disk, tmp_path)
    settings: dict[str, Any] = {**flows.SETTINGS, "log_level": "debug", "job_lease_seconds": 1}
    try:
        server = processes.serve("assets", **settings)
        worker = processes.work("assets", **settings)
        await server.healthy()
        ada = Client(processes.addresses, keys.token("ada"))

        async with (
            receiving(replying(410, IN_ANSWER.encode())) as gone,
            receiving(replying(500)) as broken,
        ):
            await broken_database(suite)
            secrets = []
            for url in (
                gone.url,
                broken.url,
                broken.url.replace("http:", "https:"),
                "http://127.0.0.1:18444/",
            ):
                made = await create(ada, f"{url}/{IN_PATH}?key={IN_QUERY}")
                rotated = await flows.stub(ada).RotateSecret(
                    pb.RotateSecretRequest(endpoint_id=made.endpoint.id)
                )
                secrets += [made.secret, rotated.secret]

            await flows.happen(ada)
            await flows.until(lambda: len(broken.requests) > 1, "attempts")
            await broken_database(suite)
            count = len(broken.requests)
            await create(ada, broken.url)
            await flows.happen(ada)
            await flows.until(
                lambda: len(broken.requests) > count, "attempts after the database was away", 30
            )

        request = pb.CreateEndpointRequest(
            url=f"http://{IN_USERINFO}:x@127.0.0.1/{IN_PATH}?key={IN_QUERY}"
        )
        refusal = await calls.refused(
            flows.stub(ada).CreateEndpoint(request), grpc.StatusCode.INVALID_ARGUMENT
        )
        shown = str(await flows.stub(ada).ListEndpoints(pb.ListEndpointsRequest()))
        await ada.close()
    finally:
        processes.close()

    log = server.log.read_text() + worker.log.read_text()
    assert "webhook endpoint disabled" in log and "CreateEndpoint" in log
    assert IN_QUERY in shown, "the owner sees the URL"
    assert not any(secret in shown for secret in secrets)

    bare = [secret.removeprefix("whsec_") for secret in secrets]
    for canary in (*bare, "whsec_", "v1,", IN_PATH, IN_QUERY, IN_USERINFO, IN_ANSWER):
        assert canary not in log, canary
        assert (
            canary not in refusal.text and canary.encode() not in refusal.status.SerializeToString()
        ), canary


async def create(client: Client, url: str) -> pb.CreateEndpointResponse:
    """Repeats the call until the database is back."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await flows.create(client, url)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise


async def broken_database(suite: Suite) -> None:
    """Ends all sessions in the middle of their work, so that errors of the driver surface."""
    with psycopg.connect(suite.cluster.admin_url, autocommit=True) as conn:
        for _ in range(2):
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (suite.database,),
            )
