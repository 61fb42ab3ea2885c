"""An export whose worker is killed between its bytes and its row: it doesn't hang, it is never
COMPLETED without bytes, and after the reconciler no bytes are left that no row names."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
from atelier.techfiles.v1 import export_pb2 as ex
from atelier.techfiles.v1 import tech_pack_pb2 as tp

from tests.faults.conftest import Bench
from tests.faults.effects import objects_of
from tests.faults.processes import until
from tests.suite import Client
from tests.techfiles import flows
from tests.techfiles.trash_flows import export_service

pytestmark = pytest.mark.faults

ROUNDS = 4
CLAIM = "LOCK TABLE techfiles.attempts IN EXCLUSIVE MODE"


async def ended(client: Client, export_id: str) -> bool:
    request = tp.GetExportRequest(export_id=export_id)
    export = (await flows.pack_service(client).GetExport(request)).export
    return bool(export.state == tp.EXPORT_STATE_COMPLETED)


@pytest.mark.parametrize("purged", [False, True], ids=["kept", "purged meanwhile"])
async def test_an_export_whose_worker_is_killed_is_made_once_and_leaves_nothing(
    bench: Bench, *, purged: bool, measured: Callable[[str], None]
) -> None:
    bench.suite.overrides |= {"reconcile_grace_minutes": 0, "reconcile_minutes": 0}
    await bench.suite.serve("techfiles")
    bench.processes.addresses |= bench.suite.addresses
    client, root = bench.suite.client(), bench.suite.storage.root
    worker = bench.processes.work("techfiles", reconcile_minutes=0)
    took, orphans = [], 0
    for _ in range(ROUNDS):
        collection = await flows.collect(client)
        request = tp.ExportCollectionRequest(
            collection_id=collection.id, format=tp.EXPORT_FORMAT_PDF
        )
        async with AsyncExitStack() as stack:
            claim = await stack.enter_async_context(bench.superuser.hold(CLAIM))
            export = (await flows.pack_service(client).ExportCollection(request)).export
            await claim.caught("techfiles_worker")
            # Queued behind the worker: granted when its claim is committed, before the attempt
            # ends.
            waiting = asyncio.create_task(stack.enter_async_context(bench.superuser.hold(CLAIM)))
            await claim.caught("postgres")
            await claim.release()
            end = await waiting
            backend = await end.caught("techfiles_worker")
            assert len(objects_of(root, export.id)) == 1
            worker.kill()
            await bench.superuser.rows("SELECT pg_terminate_backend(%s)", backend)

        if purged:
            purge = ex.PurgeExportRequest(export_id=export.id)
            await export_service(client).PurgeExport(purge)
        killed = time.monotonic()
        worker = bench.processes.work("techfiles", reconcile_minutes=0)
        if not purged:
            await until(lambda: ended(client, export.id), "the export has ended")  # noqa: B023
            took.append(time.monotonic() - killed)
        orphans += len(objects_of(root, export.id)) - (0 if purged else 1)

        reconcile = ex.ReconcileExportsRequest(max_keys=10_000)
        admin = bench.suite.client("root", role="admin")
        await export_service(admin).ReconcileExports(reconcile)
        left = objects_of(root, export.id)
        if purged:
            assert not left
            continue
        [row] = await bench.superuser.rows(
            "SELECT * FROM techfiles.exports WHERE id = %s", export.id
        )
        assert left == {row.storage_key} and row.bytes_gone_at is None
        data = (root / "data" / row.storage_key).read_bytes()[: row.size_bytes]
        assert hashlib.sha256(data).hexdigest() == row.sha256

    assert orphans, "no attempt left bytes behind, so the reconciler had nothing to do"
    seconds = f", made {max(took):.1f} s later at most" if took else ""
    measured(f"exports: {ROUNDS} workers killed, {orphans} objects left and removed{seconds}")
