"""Processes that make the runs, each with one thread, so that results do not depend on how many there are."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

from benchmarks import ROOT
from benchmarks.quality.jobs import Job
from benchmarks.quality.tasks import Task

PARENT_SECONDS = 2.0  # how often a process looks whether the one that started it is still there


def _begin(parent: int) -> None:
    import torch

    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(job: Job, task: Task, device: str) -> dict[str, str]:
    from benchmarks.quality.running import run

    return run(job, task, device)


def work_off(
    ready: Callable[[], Sequence[Job]], task_of: Callable[[Job], Task], workers: int, device: str, until: float
) -> Iterator[tuple[Job, dict[str, str]]]:
    """Makes runs side by side and gives each with its results, as they come.

    Args:
        ready: the runs that can be made now, those under way left in; asked again after each result.
        task_of: the task of a run.
        workers: processes.
        device: "cpu" or "cuda".
        until: of `time.monotonic`: no run begins after it.

    Raises:
        Exception: whatever a run raised; the others under way are abandoned, those done at the same time come first.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # of the new processes, before they load torch
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # new processes get this path; at its end, so that installed packages come first
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (os.getpid(),)) as pool:
        under_way: dict[Future[dict[str, str]], Job] = {}
        try:
            while True:
                waiting = [job for job in ready() if job not in under_way.values()]
                while waiting and len(under_way) < workers and time.monotonic() < until:
                    job = waiting.pop(0)
                    under_way[pool.submit(_work, job, task_of(job), device)] = job
                if not under_way:
                    return
                done, _ = concurrent.futures.wait(under_way, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in sorted(done, key=lambda each: each.exception() is not None):
                    job = under_way.pop(future)
                    yield job, future.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
