"""Calls a function in a new process each time, without paying for imports each time: a server imports, then forks.

`with Apart("benchmarks.peaks") as apart: apart.call(model="tiny-bert", ...)` gives what `measured` of that module
returns for these arguments, a dict that JSON can hold. A forked process has run nothing yet: it has no thread of torch
and no buffer of anybody.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Any

from benchmarks import ROOT


class Died(RuntimeError):
    """A process ended without a result; what it said stands on stderr.

    Attributes:
        status: its exit status, negative for the signal that ended it; None if the server itself is gone.
    """

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


class Apart:
    """A server for one module.

    Args:
        module: has a function `measured`, and `prepare`, which imports what the former needs and runs nothing.
        environment: variables of the server and of its processes, besides those of this process.
    """

    def __init__(self, module: str, environment: dict[str, str] | None = None) -> None:
        self._server = subprocess.Popen(
            (sys.executable, "-m", "benchmarks.apart", module),
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()

    def call(self, **arguments: object) -> dict[str, Any]:
        """Result of `measured` with these arguments, in a process of its own.

        Raises:
            Died: it raised, or was killed, for memory say.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        try:
            self._server.stdin.write(json.dumps(arguments) + "\n")
            self._server.stdin.flush()
        except BrokenPipeError:
            raise Died("the server of the measuring processes is gone", None) from None
        line = self._server.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"status": None}
        if "result" not in answer:
            status = answer["status"]
            raise Died(f"measuring {arguments}: expected a result, got exit status {status}", status)
        result: dict[str, Any] = answer["result"]
        return result


def _serve(module: str) -> None:
    """Answers each line of stdin. What measured code prints goes to stderr: stdout is for answers."""
    found = importlib.import_module(module)
    found.prepare()
    gc.freeze()  # a collection would touch, and so copy, all that the processes share
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            answers.write(json.dumps({"result": found.measured(**json.loads(line))}) + "\n")
            answers.flush()
            os._exit(0)  # without the server's buffers and handlers
        _, status = os.waitpid(child, 0)
        if status:
            answers.write(json.dumps({"status": os.waitstatus_to_exitcode(status)}) + "\n")
            answers.flush()
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
