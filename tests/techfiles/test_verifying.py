"""Faults in histories: found by a walk, shown with their repair, repaired without a loss."""

import asyncio
import json
from typing import Any

import grpc
import pytest
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import verification_pb2 as vf
from atelier.techfiles.v1 import verification_pb2_grpc

from shared.telemetry import METRICS
from tests.calls import refused
from tests.suite import Client, Suite
from tests.techfiles import flows
from tests.techfiles.test_history import update

ABORTED = grpc.StatusCode.ABORTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
UNDER_WAY = (vf.HISTORY_CHECK_STATE_PENDING, vf.HISTORY_CHECK_STATE_RUNNING)
# What keeps faults out; a restore from an incomplete backup doesn't heed it either.
UNGUARDED = "SET session_replication_role = replica;"


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    await suite.serve("assets", "techfiles")
    await suite.work("techfiles")
    return suite


def service(client: Client) -> Any:
    return client.stub(verification_pb2_grpc.HistoryCheckServiceStub)


async def start(client: Client, **fields: Any) -> vf.HistoryCheck:
    answer = await service(client).VerifyHistory(vf.VerifyHistoryRequest(**fields))
    check: vf.HistoryCheck = answer.check
    return check


async def verified(client: Client, **fields: Any) -> vf.HistoryCheck:
    """Returns a check that has ended."""
    check = await start(client, **fields)
    async with asyncio.timeout(60):
        while check.state in UNDER_WAY:
            await asyncio.sleep(0.05)
            request = vf.GetHistoryCheckRequest(check_id=check.id)
            check = (await service(client).GetHistoryCheck(request)).check
    assert check.state == vf.HISTORY_CHECK_STATE_DONE, check
    assert check.examined_slots == check.total_slots
    return check


async def findings(client: Client, **fields: Any) -> list[vf.HistoryFinding]:
    request = vf.ListHistoryFindingsRequest(**fields)
    return list((await service(client).ListHistoryFindings(request)).findings)


async def found(client: Client, **fields: Any) -> dict[str, vf.HistoryFinding]:
    """Verifies the client's files. Returns the findings by their faults, of which there may be one
    of each."""
    check = await verified(client, **fields)
    listed = await findings(client, check_id=check.id)
    by_fault = {
        vf.HistoryFault.Name(each.fault).removeprefix("HISTORY_FAULT_").lower(): each
        for each in listed
    }
    assert len(by_fault) == len(listed) == check.findings
    return by_fault


async def repair(client: Client, *rows: vf.HistoryFinding, **fields: Any) -> list[Any]:
    request = vf.RepairHistoryRequest(finding_ids=[row.id for row in rows], **fields)
    return list((await service(client).RepairHistory(request)).findings)


def lines(finding: vf.HistoryFinding) -> list[tuple[str, str, Any, Any]]:
    return [
        (line.row.partition("/")[2], line.column, json.loads(line.before), json.loads(line.after))
        for line in finding.repair
    ]


def look(suite: Suite, file_id: str, columns: str) -> Any:
    [row] = suite.sql(f"SELECT {columns} FROM techfiles.tech_files WHERE id = %s", (file_id,))
    return row


async def test_sound_histories_have_no_findings(suite: Suite) -> None:
    ada = suite.client("ada")
    first = await flows.create(ada)
    await update(ada, first, model="m")
    second = await flows.create(ada)
    third = await flows.create(ada, view_type=tf.VIEW_TYPE_BACK)
    service = flows.file_service(ada)
    await service.ArchiveTechFile(tf.ArchiveTechFileRequest(tech_file_id=third.id))
    await service.DeleteTechFile(tf.DeleteTechFileRequest(tech_file_id=second.id))
    await service.PurgeTechFile(tf.PurgeTechFileRequest(tech_file_id=second.id))
    await flows.create(ada)

    check = await verified(ada)

    assert (check.total_slots, check.findings, check.uncheckable_snapshots) == (2, 0, 0)
    assert check.examined_rows == 5, "two files, a snapshot, a purged number, an archived file"


async def test_a_slot_without_a_latest_file_gets_it_back_as_shown(suite: Suite) -> None:
    ada = suite.client("ada")
    first, second = await flows.create(ada), await flows.create(ada)
    await suite.change(
        "UPDATE techfiles.tech_files SET is_latest = false WHERE id = %s", (second.id,)
    )

    finding = (await found(ada))["no_latest"]

    assert second.id in finding.message and finding.product_id == flows.PRODUCT
    assert lines(finding) == [(second.id, "is_latest", False, True)]
    assert not (await flows.get(ada, second.id)).is_latest, "a check changes nothing"
    [done] = await repair(ada, finding)
    assert (done.state, done.repaired_by) == (vf.HISTORY_FINDING_STATE_REPAIRED, "ada")
    assert done.HasField("repair_time") and done.repair == finding.repair
    assert (await flows.get(ada, second.id)).is_latest
    assert not (await flows.get(ada, first.id)).is_latest
    assert await found(ada) == {}
    assert await findings(ada, state=vf.HISTORY_FINDING_STATE_REPAIRED) == [done]
    await refused(repair(ada, finding), PRECONDITION, "was repaired by ada")


@pytest.mark.long
async def test_workers_show_the_findings_that_are_open_by_kind(suite: Suite) -> None:
    clients = [suite.client(name) for name in ("ada", "bob", "eve")]
    for client in clients:
        await flows.create(client)
    await suite.change("UPDATE techfiles.tech_files SET is_latest = false")
    for client in clients:
        finding = (await found(client))["no_latest"]
    await repair(clients[-1], finding)

    await suite.stop_work("techfiles")
    await suite.work("techfiles")  # it looks at once, and then every 15 seconds

    def shown(fault: str) -> float | None:
        return METRICS.get_sample_value("atelier_history_findings_open", {"fault": fault})

    async with asyncio.timeout(20):
        while shown("no_latest") != 2:
            await asyncio.sleep(0.05)
    assert shown("several_latest") == 0


async def test_of_several_latest_files_the_newest_live_one_stays(suite: Suite) -> None:
    ada = suite.client("ada")
    files = [await flows.create(ada) for _ in range(3)]
    await suite.change("DROP INDEX techfiles.tech_files_latest")
    await suite.change("UPDATE techfiles.tech_files SET is_latest = true")

    finding = (await found(ada))["several_latest"]

    assert lines(finding) == [(file.id, "is_latest", True, False) for file in files[:2]]
    await repair(ada, finding)
    assert [(await flows.get(ada, file.id)).is_latest for file in files] == [False, False, True]
    await suite.change(
        "CREATE UNIQUE INDEX tech_files_latest ON techfiles.tech_files (slot_id) WHERE is_latest"
    )


async def test_a_wrong_latest_file_and_a_low_last_number_are_set_right(suite: Suite) -> None:
    ada = suite.client("ada")
    first, second = await flows.create(ada), await flows.create(ada)
    for file, latest in ((second, False), (first, True)):
        await suite.change(
            "UPDATE techfiles.tech_files SET is_latest = %s WHERE id = %s", (latest, file.id)
        )
    await suite.change("UPDATE techfiles.slots SET last_number = 1")

    wrong = await found(ada)

    assert set(wrong) == {"wrong_latest", "last_number_low"}
    assert lines(wrong["wrong_latest"]) == [
        (first.id, "is_latest", True, False),
        (second.id, "is_latest", False, True),
    ]
    slot = wrong["last_number_low"].slot_id
    assert lines(wrong["last_number_low"]) == [(slot, "last_number", 1, 2)]
    await repair(ada, *wrong.values())
    third = await flows.create(ada)
    assert (third.version_number, third.parent_file_id) == (3, second.id)
    assert await found(ada) == {}


async def test_a_missing_parent_is_said_to_be_purged_and_its_number_stays_missing(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    first, second = await flows.create(ada), await flows.create(ada)
    await suite.change(f"{UNGUARDED} DELETE FROM techfiles.tech_files WHERE id = '{first.id}'")

    wrong = await found(ada)

    assert set(wrong) == {"missing_parent", "missing_numbers"}
    parent, gap = wrong["missing_parent"], wrong["missing_numbers"]
    assert lines(parent) == [
        (second.id, "parent_file_id", first.id, None),
        (second.id, "parent_purged", False, True),
    ]
    assert gap.message.endswith(": 1") and "backup" in gap.advice and not gap.repair
    await refused(repair(ada, parent, gap), PRECONDITION, "without a loss", "backup")
    assert str(look(suite, second.id, "parent_file_id")[0]) == first.id, "all or nothing"
    await repair(ada, parent)
    mended = await flows.get(ada, second.id)
    assert mended.parent_purged and not mended.parent_file_id
    assert set(await found(ada)) == {"missing_numbers"}


async def test_gaps_and_numbers_given_twice_are_named(suite: Suite) -> None:
    ada = suite.client("ada")
    files = [await flows.create(ada) for _ in range(6)]
    lost = ", ".join(f"'{file.id}'" for file in (files[1], files[2], files[4]))
    await suite.change(f"{UNGUARDED} DELETE FROM techfiles.tech_files WHERE id IN ({lost})")
    await suite.change(f"{UNGUARDED} UPDATE techfiles.tech_files SET parent_file_id = NULL")
    await suite.change("UPDATE techfiles.slots SET last_number = 8")
    [(slot, owner)] = suite.sql("SELECT id, owner FROM techfiles.slots")
    await suite.change(
        "INSERT INTO techfiles.purged_numbers (owner, slot_id, number, tech_file_id, purged_by)"
        " VALUES (%s, %s, 4, %s, 'ada'), (%s, %s, 7, %s, 'ada')",
        (owner, slot, files[4].id) * 2,
    )

    wrong = await found(ada)

    assert set(wrong) == {"missing_numbers", "repeated_numbers"}
    assert wrong["missing_numbers"].message.startswith("4 numbers up to 8 ")
    assert wrong["missing_numbers"].message.endswith(": 2-3, 5, 8"), "7 was purged"
    assert wrong["repeated_numbers"].message == "1 numbers were given again: 4"
    await refused(repair(ada, wrong["repeated_numbers"]), PRECONDITION, "for a person to decide")


async def test_a_parent_of_another_slot_is_reported(suite: Suite) -> None:
    ada = suite.client("ada")
    front = await flows.create(ada)
    back = await flows.create(ada, view_type=tf.VIEW_TYPE_BACK)
    await suite.change(
        "UPDATE techfiles.tech_files SET parent_file_id = %s WHERE id = %s", (back.id, front.id)
    )

    finding = (await found(ada))["foreign_parent"]

    assert f"{front.id} names {back.id}" in finding.message and not finding.repair


async def test_a_changed_snapshot_is_found_by_its_digest_and_digests_are_recorded_on_request(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    file = await flows.create(ada)
    for model in ("a", "b", "c"):
        file = await update(ada, file, model=model)
    await suite.change(
        'UPDATE techfiles.tech_file_versions SET snapshot = snapshot || \'{"model": "x"}\''
        " WHERE number = 2"
    )
    await suite.change("UPDATE techfiles.tech_file_versions SET sha256 = '' WHERE number <> 2")

    check = await verified(ada)
    [finding] = await findings(ada)

    assert finding.fault == vf.HISTORY_FAULT_CHANGED_SNAPSHOT and "numbers 2" in finding.message
    assert (check.uncheckable_snapshots, check.recorded_digests) == (2, 0)
    await refused(repair(ada, finding), PRECONDITION, "restore these rows from a backup")
    recording = await verified(ada, record_digests=True)
    assert (recording.uncheckable_snapshots, recording.recorded_digests) == (0, 2)
    await suite.change(
        'UPDATE techfiles.tech_file_versions SET snapshot = snapshot || \'{"model": "x"}\''
    )
    [finding] = (await found(ada)).values()
    assert "3 snapshots" in finding.message and "numbers 1, 2, 3" in finding.message


async def test_slots_whose_names_are_one_are_reported_with_what_merging_would_do(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    closeup = {
        "file_type": tf.TECH_FILE_TYPE_CLOSEUP,
        "view_type": tf.VIEW_TYPE_UNSPECIFIED,
    }
    for name in ("Zipper", "Zipper", "other"):
        await flows.create(ada, file_category=name, **closeup)
    await suite.change(
        "UPDATE techfiles.slots SET file_category = 'ZIPPER ' WHERE file_category = 'other'"
    )

    finding = (await found(ada))["same_name"]

    assert finding.file_category == "ZIPPER " and "'zipper'" in finding.message
    assert "the numbers 1 to 1 here would become 3 to 3 there" in finding.advice
    assert not finding.repair


async def test_a_repair_of_rows_that_changed_since_is_aborted(suite: Suite) -> None:
    ada = suite.client("ada")
    for _ in range(2):
        await flows.create(ada)
    await suite.change("UPDATE techfiles.tech_files SET is_latest = false")
    await suite.change("UPDATE techfiles.slots SET last_number = 1")
    wrong = await found(ada)
    await suite.change("UPDATE techfiles.slots SET last_number = 0")

    both = repair(ada, *wrong.values())
    await refused(both, ABORTED, "have changed since", "VerifyHistory")
    assert len(await findings(ada)) == 2, "nothing was repaired"
    again = await found(ada)
    await refused(repair(ada, wrong["no_latest"]), ABORTED, "a later check replaced")
    assert [each.id for each in await findings(ada, state=vf.HISTORY_FINDING_STATE_SUPERSEDED)]
    await repair(ada, *again.values())
    assert await found(ada) == {}


async def test_a_repeated_repair_is_answered_as_the_first_was(suite: Suite) -> None:
    ada = suite.client("ada")
    await flows.create(ada)
    await suite.change("UPDATE techfiles.slots SET last_number = 0")
    finding = (await found(ada))["last_number_low"]

    first = await repair(ada, finding, request_id="mend")

    assert await repair(ada, finding, request_id="mend") == first


async def test_owners_see_their_own_and_operators_all_or_one(suite: Suite) -> None:
    ada, eve, root = suite.client("ada"), suite.client("eve"), suite.client("root", role="admin")
    for client in (ada, eve):
        await flows.create(client)
    await suite.change("UPDATE techfiles.slots SET last_number = 0")

    check = await verified(root, all_owners=True)

    assert (check.all_owners, check.total_slots, check.findings) == (True, 2, 2)
    everybody = await findings(root, check_id=check.id)
    assert {each.owner for each in everybody} == {"user:ada", "user:eve"}
    [hers] = await findings(ada)
    assert hers.owner == "user:ada" and hers.check_id == check.id
    assert await findings(root, owner="user:ada") == [hers]
    await refused(repair(eve, hers), NOT_FOUND, hers.id)
    await refused(repair(root, hers), NOT_FOUND, hers.id)
    await refused(findings(eve, owner="user:ada"), NOT_FOUND)
    await refused(findings(root), INVALID, "check_id")
    read = service(ada).GetHistoryCheck(vf.GetHistoryCheckRequest(check_id=check.id))
    await refused(read, NOT_FOUND, check.id)
    [done] = await repair(root, hers, owner="user:ada")
    assert done.repaired_by == "root"
    only = await verified(root, owner="user:eve")
    assert (only.owner, only.total_slots, only.findings) == ("user:eve", 1, 1)
    listed = await service(eve).ListHistoryChecks(vf.ListHistoryChecksRequest())
    assert [each.id for each in listed.checks] == [only.id]
    listed = await service(root).ListHistoryChecks(vf.ListHistoryChecksRequest())
    assert [each.id for each in listed.checks] == [only.id, check.id]


async def test_what_a_check_can_not_be_started_for_is_refused(suite: Suite) -> None:
    ada, root = suite.client("ada"), suite.client("root", role="admin")
    await suite.stop_work("techfiles")

    await refused(start(ada, all_owners=True), grpc.StatusCode.PERMISSION_DENIED, "operators")
    await refused(start(ada, owner="user:eve"), NOT_FOUND)
    await refused(start(root), INVALID, "all_owners")
    await refused(start(root, owner="user:ada", all_owners=True), INVALID, "choose one")
    mine, everybody = await start(ada), await start(root, all_owners=True)
    await refused(start(ada), PRECONDITION, mine.id, "CancelHistoryCheck")
    await refused(start(root, owner="user:ada"), PRECONDITION, mine.id)
    other = suite.client("other-operator", role="admin")
    await refused(start(other, all_owners=True), PRECONDITION, everybody.id)
    request = vf.CancelHistoryCheckRequest(check_id=mine.id)
    assert (await service(root).CancelHistoryCheck(request)).check.cancel_requested
    await suite.work("techfiles")
    async with asyncio.timeout(20):
        while mine.state != vf.HISTORY_CHECK_STATE_CANCELLED:
            await asyncio.sleep(0.05)
            got = vf.GetHistoryCheckRequest(check_id=mine.id)
            mine = (await service(ada).GetHistoryCheck(got)).check
    await suite.change("INSERT INTO techfiles.erased_owners (owner) VALUES ('user:gone')")
    await refused(start(root, owner="user:gone"), PRECONDITION, "erased")


async def test_a_walk_passes_over_an_owner_who_is_being_erased(suite: Suite) -> None:
    ada, root = suite.client("ada"), suite.client("root", role="admin")
    await flows.create(ada)
    await flows.create(suite.client("eve"))
    await suite.change("UPDATE techfiles.slots SET last_number = 0")
    await suite.change("INSERT INTO techfiles.erased_owners (owner) VALUES ('user:eve')")

    check = await verified(root, all_owners=True)

    assert check.findings == 1 and len(await findings(ada)) == 1
