"""The pool keeps the service alive whatever a job does, and leaves nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.imaging import ImageRejected, ImagingPool, Reason
from tests.shared.imaging import pictures


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def appearance(path: Path) -> int:
    """Waits until a job has written its process id; returns it."""
    await until(path.exists)
    return int(path.read_text())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    await until(lambda: not is_running(pid))


async def test_a_child_is_reused_and_is_not_this_process(pool: ImagingPool) -> None:
    first, second = await pool.run(pictures.process_id), await pool.run(pictures.process_id)
    assert first == second != os.getpid()


async def test_an_error_of_the_job_reaches_the_caller_as_it_is(pool: ImagingPool) -> None:
    with pytest.raises(ZeroDivisionError):
        await pool.run(pictures.divide, 1, 0)
    assert await pool.run(pictures.divide, 1, 2) == 0.5


async def test_a_child_killed_in_the_middle_is_a_clear_error_and_the_next_job_runs(
    pool: ImagingPool, tmp_path: Path
) -> None:
    job = asyncio.create_task(pool.run(pictures.sleep_after, tmp_path / "pid"))
    os.kill(await appearance(tmp_path / "pid"), signal.SIGKILL)
    with pytest.raises(ImageRejected) as caught:
        await job
    assert caught.value.reason is Reason.TOO_EXPENSIVE
    assert await pool.run(pictures.divide, 1, 2) == 0.5


async def test_a_child_stopped_from_outside_is_not_blamed_on_the_picture(
    pool: ImagingPool, tmp_path: Path
) -> None:
    job = asyncio.create_task(pool.run(pictures.hang_first_time, tmp_path / "pid"))
    os.kill(await appearance(tmp_path / "pid"), signal.SIGTERM)
    assert await job == "second run"


async def test_a_child_killed_while_idle_is_not_noticed(pool: ImagingPool) -> None:
    for _ in range(2):
        pid = await pool.run(pictures.process_id)
        os.kill(pid, signal.SIGKILL)
        assert await pool.run(pictures.process_id) != pid


async def test_time_runs_out_for_a_job_and_its_child_ends(
    pool: ImagingPool, tmp_path: Path
) -> None:
    with pytest.raises(ImageRejected) as caught:
        await pool.run(pictures.sleep_after, tmp_path / "pid", timeout=1.0)
    assert caught.value.reason is Reason.TOO_EXPENSIVE
    await gone(int((tmp_path / "pid").read_text()))
    assert await pool.run(pictures.divide, 1, 2) == 0.5


async def test_cancelling_the_caller_frees_the_child(pool: ImagingPool, tmp_path: Path) -> None:
    job = asyncio.create_task(pool.run(pictures.sleep_after, tmp_path / "pid"))
    pid = await appearance(tmp_path / "pid")
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await gone(pid)
    assert await pool.run(pictures.divide, 1, 2) == 0.5


async def test_a_caller_cancelled_while_waiting_takes_no_place(
    pool: ImagingPool, tmp_path: Path
) -> None:
    first = asyncio.create_task(pool.run(pictures.sleep_after, tmp_path / "pid"))
    await appearance(tmp_path / "pid")
    second = asyncio.create_task(pool.run(pictures.process_id))
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert await pool.run(pictures.divide, 1, 2) == 0.5


async def test_a_job_that_takes_too_much_memory_is_refused_and_the_child_lives_on(
    pool: ImagingPool,
) -> None:
    pid = await pool.run(pictures.process_id)
    with pytest.raises(ImageRejected) as caught:
        await pool.run(pictures.allocate, 600)
    assert caught.value.reason is Reason.TOO_EXPENSIVE
    assert await pool.run(pictures.allocate, 350) == 350 << 20
    assert await pool.run(pictures.process_id) == pid


@pytest.mark.long
async def test_a_failed_job_leaves_no_pixels_behind(pool: ImagingPool, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    pictures.plain(8000, 6000, 1, 2, 3, 4).pngsave(str(path), compression=1)
    for _ in range(4):  # 183 MiB each
        with pytest.raises(ValueError, match="8000"):
            await pool.run(pictures.hold_image_and_fail, path)


async def test_a_crash_in_native_code_is_a_clear_error(pool: ImagingPool) -> None:
    with pytest.raises(ImageRejected) as caught:
        await pool.run(pictures.crash)
    assert caught.value.reason is Reason.TOO_EXPENSIVE
    assert await pool.run(pictures.divide, 1, 2) == 0.5


async def test_children_are_limited(pool: ImagingPool) -> None:
    found = await pool.run(pictures.limits)
    assert found["core"] == 0
    assert found["oom_score"] == 800
    assert found["nice"] > os.nice(0)
    assert found["default_term"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
        ("a.csv", b"1,2,3\n4,5,6\n"),
        ("a.mat", b"2 2\n1 2\n3 4\n"),
    ],
)
async def test_children_decode_with_the_listed_loaders_only(
    pool: ImagingPool, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageRejected) as caught:
        await pool.run(pictures.load_with_libvips, tmp_path / name)
    assert caught.value.reason is Reason.CORRUPT


async def test_a_pool_may_give_its_jobs_more_memory() -> None:
    pool = ImagingPool(workers=1, memory=900 << 20)
    try:
        assert await pool.run(pictures.allocate, 600) == 600 << 20
        with pytest.raises(ImageRejected, match="900 MiB"):
            await pool.run(pictures.allocate, 1000)
    finally:
        await pool.close()


async def test_more_calls_than_workers_all_get_their_turn() -> None:
    pool = ImagingPool(workers=2)
    answers = await asyncio.gather(*(pool.run(pictures.divide, n, 1) for n in range(12)))
    await pool.close()
    assert answers == list(range(12))


async def test_closing_ends_the_children_and_refuses_work() -> None:
    pool = ImagingPool(workers=1)
    pid = await pool.run(pictures.process_id)
    await pool.close()
    assert not is_running(pid)
    with pytest.raises(RuntimeError, match="closed"):
        await pool.run(pictures.process_id)


@pytest.mark.long
async def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.shared.imaging.orphan", str(tmp_path / "pid")]
    parent = await asyncio.create_subprocess_exec(*program)
    child = await appearance(tmp_path / "pid")
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(10):
        await gone(child)


@pytest.mark.long
@pytest.mark.parametrize("service", ["assets", "conversions", "pipeline", "techfiles"])
def test_a_process_starts_without_what_only_children_or_one_backend_need(service: str) -> None:
    heavy = "{'pyvips', 'pikepdf', 'c2pa', 'typst', 'boto3', 'uvicorn', 'starlette'}"
    code = f"import sys, services.{service}.__main__; print(*{heavy} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )


def test_the_parent_never_loads_a_decoder() -> None:
    code = "import sys, shared.imaging; print(*{'pyvips', 'pikepdf'} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )
