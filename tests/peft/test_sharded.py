"""C14: FSDP, tensor parallelism and torch.distributed's optimizers and checkpoints are refused, and change nothing.

All of it is real, in two processes connected by gloo.
"""

import pytest
from ranks import launch
from shardcases import CASES, CHECKPOINTS, LEFT_BEHIND, TRAINING

INSTEAD = (
    "train in one process, with DistributedDataParallel, or with Accelerate or Trainer without FSDP, DeepSpeed and"
)
SAVE = (
    "save with torch.save(optimizer.state_dict(), path) in one process, and load with optimizer.load_state_dict in all"
)
FOUND = {
    "fsdp1": "one that FSDP has flattened",
    "fsdp2": "a DTensor (FSDP2 or tensor parallelism)",
    "tensor parallel": "a DTensor (FSDP2 or tensor parallelism)",
    "load": "a DTensor (FSDP2 or tensor parallelism)",
    "save": "a DTensor (FSDP2 or tensor parallelism)",
    "zero redundancy": "one by torch.distributed.optim.zero_redundancy_optimizer",
    "in backward": "one by torch.distributed.optim.apply_optimizer_in_backward",
    "local sgd": "one by torch.distributed.optim.post_localSGD_optimizer",
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return launch("shardcases", list(CASES), tmp_path_factory.mktemp("sharded"))


def assert_refused(outcome, found, instead):
    for rank in outcome:
        assert rank["said"].startswith("ShardingError: ")
        assert f", got {found}" in rank["said"]
        assert instead in rank["said"]
        assert "\n" not in rank["said"]
        assert rank["unchanged"]


@pytest.mark.parametrize("case", TRAINING)
def test_sharded_training_is_refused(case, outcome):
    """Selective or not, when the optimizer is built, gets a group, makes a step or is saved."""
    found = next(found for part, found in FOUND.items() if part in case)
    assert_refused(outcome[case], found, INSTEAD)


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_calls_of_torch_distributed_checkpoint_are_refused(case, outcome):
    """Also before they make a step of their own with zero gradients and lr = 0, which they do for an empty state."""
    assert_refused(outcome[case], "one by torch.distributed.checkpoint.state_dict", SAVE)


@pytest.mark.parametrize("case", LEFT_BEHIND)
def test_parameters_without_any_gradient_are_told(case, outcome):
    """Where sharding leaves no mark on the parameters that the optimizer holds, a step says that it trains nothing."""
    for warned in outcome[case]:
        assert len(warned) == 1
        assert "no parameter has a gradient, so nothing is trained" in warned[0]
