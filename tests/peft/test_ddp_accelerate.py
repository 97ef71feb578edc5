"""C4, C11: Accelerate in two processes, with a loop written by hand: accumulation, checkpoints, and FSDP2 refused."""

import pytest
from harness import assert_same_picture
from ranks import launch

pytest.importorskip("accelerate", reason="accelerate is not installed: pip install '.[test]'")

DTYPES = ("fp32", "bf16")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    cases = [*DTYPES, *(f"resume {name}" for name in DTYPES), "fsdp2"]
    return launch("acceleratecases", cases, tmp_path_factory.mktemp("accelerate"))


@pytest.mark.parametrize("name", DTYPES)
def test_both_processes_do_the_same(name, outcome):
    """`prepare()` and `accumulate`: one selection, bit-equal parameters and state; names without DDP's prefix."""
    first, second = outcome[name]
    assert first["wrapped"] == "DistributedDataParallel"
    assert first["names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert first["selected"] == 90
    assert_same_picture(second["picture"], first["picture"])


@pytest.mark.parametrize("name", DTYPES)
def test_save_state_and_load_state(name, outcome):
    """A folder that the main process wrote, loaded by both: bit-equal to the run that was not interrupted."""
    for resumed, whole in zip(outcome[f"resume {name}"], outcome[name], strict=True):
        assert (resumed["lr"], resumed["selected"]) == (whole["lr"], whole["selected"])
        assert_same_picture(resumed["picture"], whole["picture"])


def test_fsdp2_is_refused(outcome):
    """Accelerate's own `prepare` for FSDP2, which replaces the parameters in the groups twice."""
    for rank in outcome["fsdp2"]:
        assert rank["kinds"] == ["DTensor"]
        assert rank["said"].startswith("ShardingError: body.0.weight: expected a parameter that is whole")
        assert "with DistributedDataParallel" in rank["said"]
        assert rank["unchanged"]
