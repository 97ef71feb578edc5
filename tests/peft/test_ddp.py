"""C4, C11: with DistributedDataParallel all processes select the same and stay bit-equal, also after a resume."""

import pytest
import torch
from ddpcases import CASES, RESUMED, RUNS, STEPS, alone
from harness import assert_same_picture
from ranks import launch

HISTORY = [name for name in RUNS if name != "whole"]  # selects nothing


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return launch("ddpcases", list(CASES), tmp_path_factory.mktemp("ddp"))


def assert_same_run(actual, expected):
    assert len(actual["history"]) == len(expected["history"]) == STEPS
    for step, (mine, theirs) in enumerate(zip(actual["history"], expected["history"], strict=True)):
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            assert torch.equal(a, b), f"step {step}, tensor {i}"
    assert_same_picture(actual["picture"], expected["picture"])
    assert actual["skipped"] == expected["skipped"]


def without_prefix(result):
    """A picture in which parameters have the names of the bare model."""
    bare = {
        path: leaf.removeprefix("module.") if isinstance(leaf, str) else leaf
        for path, leaf in result["picture"].items()
    }
    return {**result, "picture": bare}


@pytest.mark.parametrize("name", CASES)
def test_both_processes_do_the_same(name, outcome):
    """The same entries in every step; parameters, gradients, state and counters bit-equal at the end."""
    first, second = outcome[name]
    assert_same_run(second, first)


@pytest.mark.parametrize("name", RUNS)
def test_it_is_the_training_of_one_process_on_averaged_gradients(name, outcome):
    """Bit for bit: with two ranks the average is exact to one rounding."""
    assert_same_run(without_prefix(outcome[name][0]), alone(RUNS[name]))


@pytest.mark.parametrize("name", RESUMED)
def test_what_rank_0_saved_goes_on_in_all_processes(name, outcome):
    """C11: bit-equal to the run that was not interrupted."""
    for resumed, whole in zip(outcome[f"resume {name}"], outcome[name], strict=True):
        assert_same_run(resumed, whole)


def test_cases_are_what_their_names_say(outcome):
    """Selections grow, buckets do give unaligned gradients, and the poisoned steps are skipped by both."""
    for name in HISTORY:
        counts = [sum(map(len, step)) for step in outcome[name][0]["history"]]
        assert counts[-1] == 120, name
    assert all(outcome[name][0]["unaligned"] for name in RUNS if "views" in name)
    for name, run in RUNS.items():
        assert [rank["skipped"] for rank in outcome[name]] == [len(run.poisoned)] * 2
