"""The code of a child process: it gives up rights and resources, then runs jobs.

This module must not import libvips at the top: the parent imports it to name its functions.
"""

import ctypes
import gc
import multiprocessing
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import TypeVar

from shared import logs
from shared.imaging.model import MEBIBYTE, ImageRejected, NotUnderstood, Reason

T = TypeVar("T")

MEMORY_LIMIT = 512 * MEBIBYTE
LIBRARY_RESERVE = 32 * MEBIBYTE
FILE_LIMIT = 256 * MEBIBYTE
LOADERS = ("Jpeg", "Png", "Webp", "Heif", "Nsgif", "Tiff")

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
M_ARENA_MAX = -8
M_MMAP_THRESHOLD = -3
_LIBC = ctypes.CDLL(None)

_memory = MEMORY_LIMIT  # that of this process's jobs


def prepare(threads: int, memory: int = MEMORY_LIMIT) -> None:
    """Limits this process for good. libvips may use `threads` threads, a job `memory` bytes."""
    global _memory
    _memory = memory
    # The default action ends the process even during a C call; a Python handler would wait until
    # the call returns.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(5)
    if sys.platform == "linux":
        _bind_to_parent()
    logs.keep_stderr()
    _prepare_libvips(threads)
    gc.freeze()  # scanning the modules after each job would take longer than some jobs
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def run_job(function: Callable[..., T], args: tuple[object, ...]) -> T:
    """Runs a job and frees its memory before the next one.

    Errors of libvips and malloc become `ImageRejected`: the parent has no libvips and couldn't
    unpickle its errors.
    """
    if sys.platform == "linux":
        _limit_memory()
    try:
        return function(*args)
    except BaseException as error:
        _drop_locals(error)
        rejection = _rejection(error)
        if rejection is None:
            raise
        raise rejection from error
    finally:
        gc.collect()
        if hasattr(_LIBC, "malloc_trim"):
            _LIBC.malloc_trim(0)


def corrupt() -> ImageRejected:
    return ImageRejected(
        Reason.CORRUPT,
        "The file is damaged or cut short and can't be decoded completely. Export it again and"
        " resend it.",
    )


def unsupported(what: str, instead: str) -> ImageRejected:
    """NOT_SUPPORTED, for a file without known damage. `what` names its form, with an article;
    `instead` is the next step."""
    return ImageRejected(
        Reason.NOT_SUPPORTED, f"The file is {what}, which can't be read here. {instead}"
    )


@contextmanager
def nothing_unforeseen(step: str) -> Iterator[None]:
    """Turns unforeseen errors into NotUnderstood: the same file would fail again however often it
    is sent."""
    import pyvips

    try:
        yield
    except (ImageRejected, OSError, MemoryError, pyvips.Error):
        raise
    except Exception as error:
        raise NotUnderstood(
            Reason.NOT_SUPPORTED,
            f"Something in the file isn't understood here ({type(error).__name__} while it was"
            f" {step}). Export it again as an ordinary JPEG or PNG, send that, and tell the"
            " operator of this file.",
        ) from error


def too_expensive(memory: int | None = None) -> ImageRejected:
    """TOO_EXPENSIVE. `memory`: what a job may use; None: what those of this process may use."""
    mebibytes = (memory or _memory) // MEBIBYTE
    return ImageRejected(
        Reason.TOO_EXPENSIVE,
        f"Decoding the file took more than the allowed time or {mebibytes} MiB of"
        " memory. Send a smaller or simpler version of it.",
    )


def _rejection(error: BaseException) -> ImageRejected | None:
    import pyvips

    text = str(error).lower()
    if isinstance(error, MemoryError):
        return too_expensive()
    if isinstance(error, pyvips.Error):
        return (
            too_expensive()
            if "memory" in text and re.search("out of|insufficient|alloc", text)
            else corrupt()
        )
    return None


def _drop_locals(error: BaseException | None) -> None:
    """Clears the frames of an exception: Pebble keeps it until the next job is done, and they would
    keep the pixels alive."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _bind_to_parent() -> None:
    """Makes this child end with the process that it serves, however that ends: the fork server ends
    with it and takes its children along. The fork server lives while anybody holds the write end of
    a pipe. Children get it too, to start others, which these never do, so it is closed here.
    """
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():  # the parent died before the line above
        os._exit(1)
    _LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if hasattr(_LIBC, "mallopt"):
        # The limit counts addresses. Each arena would reserve 64 MiB of them, and pixels freed into
        # the heap and not to the system would be missing for the next picture.
        _LIBC.mallopt(M_ARENA_MAX, 1)
        _LIBC.mallopt(M_MMAP_THRESHOLD, MEBIBYTE // 4)
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("800")


def _prepare_libvips(threads: int) -> None:
    import pyvips

    pyvips.block_untrusted_set(True)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for loader in LOADERS:
        pyvips.operation_block_set(f"VipsForeignLoad{loader}", False)
    # Each file is processed once, so a cache would only waste memory.
    pyvips.cache_set_max(0)
    pyvips.vips_lib.vips_concurrency_set(threads)


def _limit_memory() -> None:
    """Limits the resident memory of a job to that of `prepare`. Only addresses can be limited, so
    addresses that are mapped but not resident at its start (thread stacks, memory freed by earlier
    jobs) are added. Some of them, above all library code, become resident later; LIBRARY_RESERVE is
    kept back for these."""
    with open("/proc/self/statm") as statm:
        mapped, resident = (
            int(pages) * resource.getpagesize() for pages in statm.read().split()[:2]
        )
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory - LIBRARY_RESERVE + mapped - resident, most))
