"""What the processes of test_ddp_accelerate.py run: Accelerate with a loop written by hand, and its FSDP2."""

from functools import partial

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from harness import picture
from selective_peft import SelectiveAdamW
from selective_peft.naming import named_params
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, STOP = 4, 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_model(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 33), nn.Tanh(), nn.Linear(33, 3)).to(dtype)


def make_optimizer(model):
    groups = [
        {"params": list(model[:2].named_parameters("body"))},
        {"params": list(model[2].named_parameters("head")), "selective": False},
    ]
    return SelectiveAdamW(groups, lr=0.02, weight_decay=0.1, budget=90, total_steps=6)


def build(dtype, accelerator):
    """Prepared model, optimizer, scheduler and data: 3 batches of a process in an epoch, the last of them alone."""
    generator = torch.Generator().manual_seed(1)
    rows = TensorDataset(torch.randn(24, 10, generator=generator).to(dtype))
    model = make_model(dtype)
    optimizer = make_optimizer(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return accelerator.prepare(model, optimizer, scheduler, DataLoader(rows, batch_size=4))


def train(accelerator, model, optimizer, scheduler, rows, epochs):
    for _ in range(epochs):
        for (x,) in rows:
            with accelerator.accumulate(model):
                accelerator.backward(model(x).float().square().mean())
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()


def result(model, optimizer, scheduler):
    return {
        "picture": picture(optimizer, list(named_params(model).values())),
        "names": list(named_params(model)),
        "selected": optimizer.optimizer.num_selected,
        "lr": scheduler.get_last_lr()[0],
        "wrapped": type(model).__name__,
    }


def loop(dtype, rank, folder, stop=None):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    parts = build(dtype, accelerator)
    train(accelerator, *parts, EPOCHS if stop is None else stop)
    if stop is not None:
        accelerator.save_state(folder / f"state-{dtype}", safe_serialization=True)
        accelerator.wait_for_everyone()
        accelerator.free_memory()
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        parts = build(dtype, accelerator)
        accelerator.load_state(folder / f"state-{dtype}")
        train(accelerator, *parts, EPOCHS - stop)
    return result(*parts[:3])


def fsdp2(rank, folder):
    """`prepare` puts dummies into the groups, shards the model and puts DTensors in their place."""
    accelerator = Accelerator(cpu=True, fsdp_plugin=(plugin := FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="NO_WRAP", cpu_ram_efficient_loading=False
    )))  # fmt: skip
    # Accelerate shards on accelerators only; what it does then runs on a CPU as well.
    AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    model = make_model(torch.float32)
    model, optimizer = accelerator.prepare(model, make_optimizer(model))
    params = [param for group in optimizer.param_groups for param in group["params"]]
    accelerator.backward(model(torch.ones(4, 10)).square().mean())
    before = [param.to_local().clone() for param in params]
    try:
        optimizer.step()
        said = None
    except NotImplementedError as error:
        said = f"{type(error).__name__}: {error}"
    return {
        "kinds": sorted({type(param).__name__ for param in params}),
        "said": said,
        "unchanged": all(torch.equal(param.to_local(), old) for param, old in zip(params, before, strict=True))
        and len(optimizer.state) == optimizer.optimizer.num_selected == 0,
    }


CASES = {"fsdp2": fsdp2}
for name, dtype in DTYPES.items():
    CASES |= {name: partial(loop, dtype), f"resume {name}": partial(loop, dtype, stop=STOP)}
