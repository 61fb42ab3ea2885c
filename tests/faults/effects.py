"""What a rendition must leave behind, however often its worker died, read as superuser and from the
store."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.assets.v1 import asset_pb2

from shared.imaging import DEFAULT_PRESETS
from tests.faults.conftest import Bench
from tests.faults.processes import until

FINAL = ("done", "failed", "cancelled")


@dataclass
class Effect:
    """The end of one rendition. `orphans` are objects of the asset that no row points at."""

    state: str
    error_class: str
    outcomes: list[str]
    orphans: int


async def ended(bench: Bench, asset_id: str) -> None:
    """Returns once the rendition is final and its job is gone from the queue."""

    async def finished() -> bool:
        state = await bench.superuser.value(
            "SELECT state FROM assets.renditions WHERE asset_id = %s", asset_id
        )
        return state in FINAL and not await jobs_left(bench)

    await until(finished, f"the rendition of {asset_id} is final, and its job done")


async def jobs_left(bench: Bench) -> int:
    """Returns the number of jobs in the queue that wait or run."""
    return int(
        await bench.superuser.value(
            "SELECT count(*) FROM assets_jobs.procrastinate_jobs WHERE status IN ('todo', 'doing')"
        )
    )


async def effect(bench: Bench, asset_id: str) -> Effect:
    """Asserts what holds for every end, and returns what differs."""
    [job] = await bench.superuser.rows(
        "SELECT * FROM assets.renditions WHERE asset_id = %s", asset_id
    )
    rows = await bench.superuser.rows("SELECT * FROM assets.variants WHERE asset_id = %s", asset_id)
    [asset] = await bench.superuser.rows("SELECT * FROM assets.assets WHERE id = %s", asset_id)
    attempts = await bench.superuser.rows(
        "SELECT * FROM assets.attempts WHERE job_id = %s ORDER BY created_at", job.id
    )
    assert sorted(row.preset for row in rows) == sorted(preset.name for preset in DEFAULT_PRESETS)
    ready = [row for row in rows if row.state == "ready"]
    assert len(ready) == (len(rows) if job.state == "done" else 0)
    shown = [asset.storage_key, *(row.storage_key for row in ready)]
    for row in ready:
        _check_bytes(bench.suite.storage.root, row)
    outcomes = [attempt.outcome for attempt in attempts]
    assert outcomes.count("succeeded") == (1 if job.state == "done" else 0)
    assert "running" not in outcomes
    assert [attempt.number for attempt in attempts] == list(range(1, len(attempts) + 1))
    await _check_events(bench, [row.id for row in rows], ready)
    stored = objects_of(bench.suite.storage.root, asset_id)
    return Effect(job.state, job.error_class, outcomes, len(stored - set(shown)))


def objects_of(root: Path, asset_id: str) -> set[str]:
    """Returns the keys of all objects of the asset."""
    data = root / "data"
    return {
        str(path.relative_to(data)) for path in data.glob(f"**/{asset_id}/**/*") if path.is_file()
    }


def _check_bytes(root: Path, row: Any) -> None:
    stored = (root / "data" / row.storage_key).read_bytes()[: row.size_bytes]
    assert hashlib.sha256(stored).hexdigest() == row.sha256


async def _check_events(bench: Bench, ids: list[Any], ready: list[Any]) -> None:
    """Asserts that every version of every variant was published once, and READY once."""
    told = await bench.superuser.rows(
        "SELECT subject_id, version, payload FROM assets.events WHERE subject = 'variant' AND"
        " subject_id = ANY (%s)",
        ids,
    )
    versions = Counter((row.subject_id, row.version) for row in told)
    assert set(versions.values()) == {1}
    shown = Counter(
        row.subject_id
        for row in told
        if asset_pb2.Variant.FromString(row.payload).state == asset_pb2.VARIANT_STATE_READY
    )
    assert shown == Counter(row.id for row in ready)
