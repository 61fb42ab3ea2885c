"""A check of histories whose worker is killed in the middle finds everything once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from atelier.techfiles.v1 import tech_file_pb2, tech_file_pb2_grpc, verification_pb2_grpc
from atelier.techfiles.v1 import verification_pb2 as vf

from tests.faults.processes import Process, Processes, Superuser, until
from tests.suite import Client

pytestmark = pytest.mark.faults

SLOTS = 10_000
SNAPSHOTS = 11  # of each slot, which has one file more
ROWS = SLOTS * (SNAPSHOTS + 1)
BROKEN = 100  # every so many slots one has a wrong number
_ADD_SLOTS = """
    INSERT INTO techfiles.slots (id, owner, product_id, file_type, view_type, file_category,
        last_number)
    SELECT gen_random_uuid(), owner, 'product ' || n, file_type, view_type, '',
        CASE WHEN n % {broken} = 0 THEN 5 ELSE {snapshots} + 1 END
    FROM techfiles.slots, generate_series(1, {slots} - 1) n
"""
_ADD_FILES = """
    INSERT INTO techfiles.tech_files (id, owner, created_by, slot_id, product_id, file_type,
        view_type, state, number, numbered_at, is_latest)
    SELECT gen_random_uuid(), owner, 'ada', id, product_id, file_type, view_type, 'completed',
        {snapshots} + 1, now(), true
    FROM techfiles.slots WHERE product_id LIKE 'product %'
"""
_ADD_SNAPSHOTS = """
    INSERT INTO techfiles.tech_file_versions (id, owner, slot_id, tech_file_id, number, snapshot,
        created_by, created_at, sha256)
    SELECT gen_random_uuid(), f.owner, f.slot_id, f.id, n, to_jsonb(f), 'ada', now(),
        encode(sha256(convert_to(to_jsonb(f)::text, 'UTF8')), 'hex')
    FROM techfiles.tech_files f, generate_series(1, {snapshots}) n
    WHERE f.product_id LIKE 'product %'
"""


def memory(worker: Process) -> int:
    """Returns the resident memory of a worker in MiB."""
    status = Path(f"/proc/{worker.popen.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


async def fill(superuser: Superuser) -> None:
    for statement in (_ADD_SLOTS, _ADD_FILES, _ADD_SNAPSHOTS):
        text = statement.format(slots=SLOTS, snapshots=SNAPSHOTS, broken=BROKEN)
        await superuser.rows(text.replace("%", "%%"))  # rows are asked for with parameters
    await superuser.rows("ANALYZE")


async def test_a_killed_check_goes_on_where_it_was(
    processes: Processes, measured: Callable[[str], None]
) -> None:
    superuser = Superuser(processes.cluster.url(processes.database))
    await processes.serve("techfiles").healthy()
    client = Client(processes.addresses, processes.keys.token("ada"))
    files: Any = client.stub(tech_file_pb2_grpc.TechFileServiceStub)
    checks: Any = client.stub(verification_pb2_grpc.HistoryCheckServiceStub)
    await files.CreateTechFile(
        tech_file_pb2.CreateTechFileRequest(
            product_id="first",
            file_type=tech_file_pb2.TECH_FILE_TYPE_SKETCH,
            view_type=tech_file_pb2.VIEW_TYPE_FRONT,
        )
    )
    await fill(superuser)
    check = (await checks.VerifyHistory(vf.VerifyHistoryRequest())).check

    async def shown() -> vf.HistoryCheck:
        answer = await checks.GetHistoryCheck(vf.GetHistoryCheckRequest(check_id=check.id))
        found: vf.HistoryCheck = answer.check
        return found

    async def reached(slots: int) -> bool:
        return (await shown()).examined_slots >= slots

    worker = processes.work("techfiles")
    await until(lambda: reached(SLOTS // 4), "a quarter is examined", seconds=120)
    worker.kill()
    before = (await shown()).examined_slots
    assert before < SLOTS, "the check wasn't killed in the middle"
    worker = processes.work("techfiles")
    await until(lambda: reached(before + 1), "it goes on", seconds=120)
    began, first, at = time.monotonic(), memory(worker), (await shown()).examined_rows
    await until(lambda: reached(SLOTS), "all slots are examined", seconds=300)
    seconds, last = time.monotonic() - began, memory(worker)

    async def done() -> bool:
        return (await shown()).state == vf.HISTORY_CHECK_STATE_DONE

    await until(done, "the check is done")
    ended = await shown()
    broken = (SLOTS - 1) // BROKEN
    assert (ended.total_slots, ended.examined_slots) == (SLOTS, SLOTS)
    assert (ended.findings, ended.examined_rows) == (broken, ROWS - SNAPSHOTS)
    named = "SELECT count(DISTINCT slot_id) AS slots, count(*) FROM techfiles.history_findings"
    [found] = await superuser.rows(named)
    assert tuple(found) == (broken, broken), "nothing was found twice, or missed"
    await client.close()
    rate = (ended.examined_rows - at) / seconds
    measured(
        f"check of histories: {ended.examined_rows} rows in {SLOTS} slots, killed after {before};"
        f" {rate:.0f} rows a second, worker {first} -> {last} MiB; a million rows would take"
        f" {1_000_000 / rate:.0f} s (extrapolated)"
    )
