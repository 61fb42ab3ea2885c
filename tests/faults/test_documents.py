"""A document whose worker is killed between its bytes and its row: it is never READY without bytes,
and no number is lost."""

import asyncio
import hashlib
import io
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pikepdf
import pytest

from tests.assets.test_documents import checklist, create, regenerate
from tests.faults.conftest import Bench
from tests.faults.effects import objects_of
from tests.faults.processes import LEASE_SECONDS, Hold, until

pytestmark = pytest.mark.faults

ROUNDS = 5
CLAIM = "LOCK TABLE assets.attempts IN EXCLUSIVE MODE"
Reached = tuple[str, Hold]  # the document's id, and the lock that holds the worker now


async def dequeued(bench: Bench, stack: AsyncExitStack) -> Reached:
    """The worker has taken the job from the queue; nothing about it is written yet."""
    claim = await stack.enter_async_context(bench.superuser.hold(CLAIM))
    document = await create(bench.client, checklist(), wait=False)
    await claim.caught()
    return document.id, claim


async def bytes_stored(bench: Bench, stack: AsyncExitStack) -> Reached:
    """The PDF is in the store and was opened; COMMIT of the row that shows it is next."""
    document_id, claim = await dequeued(bench, stack)
    # Queued behind the worker: granted when its claim is committed, before the attempt ends.
    waiting = asyncio.create_task(stack.enter_async_context(bench.superuser.hold(CLAIM)))
    await claim.caught("postgres")
    await claim.release()
    end = await waiting
    await end.caught()
    assert len(objects_of(bench.suite.storage.root, document_id)) == 1
    state = await bench.superuser.value(
        "SELECT state FROM assets.documents WHERE id = %s", document_id
    )
    assert state == "processing"
    return document_id, end


@pytest.mark.parametrize("step", [dequeued, bytes_stored], ids=lambda step: step.__name__)
async def test_a_document_whose_worker_is_killed_is_made_once_under_its_number(
    bench: Bench,
    step: Callable[[Bench, AsyncExitStack], Awaitable[Reached]],
    measured: Callable[[str], None],
) -> None:
    worker = bench.processes.work("assets")
    took, orphans = [], 0
    for number in range(1, 2 * ROUNDS, 2):
        async with AsyncExitStack() as stack:
            document_id, hold = await step(bench, stack)
            backend = await hold.caught()
            worker.kill()
            await bench.superuser.rows("SELECT pg_terminate_backend(%s)", backend)

        killed = time.monotonic()
        worker = bench.processes.work("assets")
        await until(lambda: ready(bench, document_id), "the document is READY")  # noqa: B023
        took.append(time.monotonic() - killed)
        [row] = await bench.superuser.rows(
            "SELECT * FROM assets.documents WHERE id = %s", document_id
        )
        data = (bench.suite.storage.root / "data" / row.storage_key).read_bytes()[: row.size_bytes]
        assert hashlib.sha256(data).hexdigest() == row.sha256
        with pikepdf.open(io.BytesIO(data)) as pdf:
            assert len(pdf.pages) == row.page_count

        orphans += len(objects_of(bench.suite.storage.root, document_id) - {row.storage_key})
        assert row.number == number
        assert (await regenerate(bench.client, document_id)).version_number == number + 1

        outcomes = await bench.superuser.rows(
            "SELECT outcome FROM assets.attempts WHERE job_id = %s ORDER BY created_at", document_id
        )
        assert [each.outcome for each in outcomes] == [
            *(["lost"] if step is bytes_stored else []),
            "succeeded",
        ]

    measured(
        f"R23 {step.__name__}: {ROUNDS} kills, READY {min(took):.1f} to {max(took):.1f} s after the"
        f" kill (lease {LEASE_SECONDS:g} s, with the start of a new worker), {orphans} objects for"
        " the reconciler"
    )


async def ready(bench: Bench, document_id: str) -> bool:
    state = await bench.superuser.value(
        "SELECT state FROM assets.documents WHERE id = %s", document_id
    )
    assert state != "failed"
    return bool(state == "ready")
