"""An erasure whose worker is killed: it goes on, and the receipt counts each picture once."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from atelier.conversions.v1 import consent_pb2 as pb
from atelier.conversions.v1 import generation_pb2

from tests.conversions import flows
from tests.faults.conftest import Bench
from tests.faults.processes import Hold, until

pytestmark = pytest.mark.faults

PICTURES = 2
ITEMS = "LOCK TABLE conversions.erasure_items IN EXCLUSIVE MODE"


async def before_the_purge(bench: Bench, stack: AsyncExitStack, consent_id: str) -> Hold:
    """The worker is about to note the pictures that it will purge."""
    hold = await stack.enter_async_context(bench.superuser.hold(ITEMS))
    await revoke(bench, consent_id)
    await hold.caught("conversions_worker")
    return hold


async def after_the_purge(bench: Bench, stack: AsyncExitStack, consent_id: str) -> Hold:
    """The pictures are purged, and not counted yet."""
    note = await before_the_purge(bench, stack, consent_id)
    # Queued behind the worker: granted when its note is committed, before it counts.
    waiting = asyncio.create_task(stack.enter_async_context(bench.superuser.hold(ITEMS)))
    await note.caught("postgres")
    await note.release()
    count = await waiting
    await count.caught("conversions_worker")
    return count


@pytest.mark.parametrize(
    "step", [before_the_purge, after_the_purge], ids=lambda step: step.__name__
)
async def test_an_erasure_whose_worker_is_killed_goes_on_and_counts_once(
    bench: Bench,
    step: Callable[[Bench, AsyncExitStack, str], Awaitable[Hold]],
    tmp_path: Path,
) -> None:
    await bench.suite.serve("conversions")
    bench.processes.addresses |= bench.suite.addresses
    worker = bench.processes.work("conversions")
    ada = bench.client
    person, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
    consent = await flows.consent(ada, person)
    worn = await flows.convert(ada, person, garment, wait=True)
    sketch = await flows.generate(
        ada, task=generation_pb2.GENERATION_TASK_SKETCH, source_asset_id=worn.result_asset_id
    )
    assert worn.result_asset_id and sketch.result_asset_id

    async with AsyncExitStack() as stack:
        hold = await step(bench, stack, consent.id)
        backend = await hold.caught("conversions_worker")
        worker.kill()
        await bench.superuser.rows("SELECT pg_terminate_backend(%s)", backend)
        there = await bench.superuser.value(
            "SELECT count(*) FROM assets.assets WHERE id = ANY(%s)",
            [worn.result_asset_id, sketch.result_asset_id],
        )
        assert there == (0 if step is after_the_purge else PICTURES)
    assert (await receipt(bench, consent.id)).state == pb.ERASURE_STATE_RUNNING
    bench.processes.work("conversions")

    async def ended() -> bool:
        return (await receipt(bench, consent.id)).state != pb.ERASURE_STATE_RUNNING

    await until(ended, "the erasure has ended")
    found = await receipt(bench, consent.id)
    assert (found.state, found.pictures_purged) == (pb.ERASURE_STATE_COMPLETE, PICTURES)
    left = await bench.superuser.rows("SELECT kind FROM assets.assets WHERE state = 'ready'")
    assert len(left) == 2, "the photograph and the garment"


async def receipt(bench: Bench, consent_id: str) -> pb.ConsentErasure:
    request = pb.GetConsentRequest(consent_id=consent_id)
    answer = await flows.consents(bench.client).GetConsent(request)
    found: pb.ConsentErasure = answer.consent.erasure
    return found


async def revoke(bench: Bench, consent_id: str) -> None:
    await flows.consents(bench.client).RevokeConsent(pb.RevokeConsentRequest(consent_id=consent_id))
