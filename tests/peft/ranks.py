"""Several processes on this machine, connected by gloo: `launch` starts them, and each runs the cases of a module.

A case is a function of a module's CASES that takes the rank and returns something that torch.save can write.
"""

import importlib
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

RANKS = 2


class Outcome(dict):
    """What each case returned, as a list by rank; a case that was not reached is a failure with all output."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def __missing__(self, case):
        raise AssertionError(f"{case!r} did not finish in all processes\n{self.log}")


def launch(module, cases, folder, timeout=60):
    """Runs the cases in RANKS processes, one after the other; nothing is left running, and no case can hang longer."""
    processes, logs = [], [folder / f"log.{rank}" for rank in range(RANKS)]
    for rank, log in enumerate(logs):
        command = [sys.executable, __file__, module, str(folder), str(rank), *cases]
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS),
            "LOCAL_WORLD_SIZE": str(RANKS), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        with log.open("wb") as output:
            processes.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment))
    end = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if any(process.poll() for process in processes):
                break  # the others would wait for it
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ends = [f"rank {rank}: exit status {process.returncode}" for rank, process in enumerate(processes)]
    outcome = Outcome("\n".join([*ends, *(log.read_text(errors="replace")[-4000:] for log in logs)]))
    for case in cases:
        files = [result_of(folder, case, rank) for rank in range(RANKS)]
        if all(file.exists() for file in files):
            outcome[case] = [torch.load(file, weights_only=True) for file in files]
    return outcome


def result_of(folder, case, rank):
    return folder / f"{case.replace(' ', '-')}.{rank}.pt"


def main(module, folder, rank, *cases):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS, timeout=timedelta(seconds=30)
    )
    known = importlib.import_module(module).CASES
    for case in cases:
        file = result_of(folder, case, rank)
        torch.save(known[case](rank, folder), file.with_suffix(".part"))
        os.replace(file.with_suffix(".part"), file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
