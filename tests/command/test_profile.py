"""`selective-peft profile`, and the ranges that it adds up."""

import json

import pytest
import torch
from selective_peft import SelectiveAdamW, SelectiveSGD
from selective_peft.cli import main

from selective_kernels.ranges import stopwatch


def test_profile_prints_every_part_and_writes_a_trace(tiny_model, tmp_path, capsys):
    trace = tmp_path / "trace.json"
    more = ["--batch-size", "4", "--length", "16", "--steps", "3", "--budget", "1%", "--trace", str(trace)]
    assert main(["profile", "--model", str(tiny_model), *more]) == 0
    printed = capsys.readouterr().out
    for part in ("forward", "backward", "scan", "finalize", "merge", "update", "GB/s", "peak of the process"):
        assert part in printed
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"selective_kernels::scan", "selective_kernels::update"} <= names


@pytest.mark.parametrize(
    ("more", "message"), [(["--length", "64"], "at most the model's 32"), (["--budget", "9999999"], "budget")]
)
def test_profile_refuses(more, message, tiny_model, capsys):
    assert main(["profile", "--model", str(tiny_model), *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", [SelectiveAdamW, SelectiveSGD])
def test_ranges_of_a_step(kind, backend):
    param = torch.nn.Parameter(torch.randn(500))
    optimizer = kind([param], lr=0.1, budget=20, total_steps=1, backend=backend)
    param.grad = torch.randn(500)
    with stopwatch() as first, stopwatch() as inner:
        optimizer.step()
    assert set(first) == {"scan", "finalize", "merge", "update"}
    assert first == inner
    assert all(seconds > 0 for seconds in first.values())
    with stopwatch() as second, torch.profiler.profile() as profiler:
        optimizer.step()
    assert set(second) == {"gather", "update"}
    seen = {event.key for event in profiler.key_averages() if event.key.startswith("selective_kernels::")}
    assert seen == {"selective_kernels::gather", "selective_kernels::update"}
    optimizer.step()
    assert set(second) == {"gather", "update"}
