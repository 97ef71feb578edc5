"""What the tests of whole fine-tuning share."""

import peft
import pytest
import torch

from benchmarks import workloads
from benchmarks.finetuning import METHODS, ON_GPU

ON_CPU = [name for name in METHODS if name != ON_GPU]
BERT, LLAMA = workloads.WORKLOADS["tiny-bert"], workloads.WORKLOADS["tiny-llama"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small get slower with more, many times so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lacking(name):
    """Whether the installed PEFT has no such configuration: a row then says so."""
    return not hasattr(peft, name)
