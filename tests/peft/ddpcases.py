"""What the processes of test_ddp.py run: the same training on other data in each, and alone on averaged gradients."""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from harness import picture
from ranks import RANKS
from selective_peft import SelectiveAdamW, SelectiveSGD
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

STEPS = 8
STOP = 4  # where the resumed run was saved


class Model(nn.Module):
    """Odd sizes, so that gradients in DDP's buckets begin anywhere; rare rows; and a part that is not always used."""

    def __init__(self, dtype, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(23, 9)
        self.body = nn.Sequential(nn.Linear(9, 33), nn.LayerNorm(33), nn.Linear(33, 7))
        self.sometimes = nn.Linear(7, 7)
        self.head = nn.Linear(7, 3)
        self.to(dtype)

    def forward(self, tokens, extra):
        hidden = self.body(self.embedding(tokens).mean(1))
        return self.head(self.sometimes(hidden) if extra else hidden)


@dataclass
class Run:
    """How one training goes; the fields say what is different from the simplest one."""

    dtype: torch.dtype = torch.float32
    options: dict = field(default_factory=lambda: {"budget": 120, "total_steps": 6})
    kind: type = SelectiveAdamW
    dense_head: bool = True
    ddp: dict = field(default_factory=dict)
    micro_batches: int = 1  # all but the last within no_sync()
    extra: tuple = ((True,) * STEPS,) * RANKS  # by rank and step: whether the part is used
    poisoned: tuple = ()  # steps in which the last rank's loss is not finite
    compressed: bool = False


LENGTH = {"budget": 120, "total_steps": 6}
VIEWS = {"gradient_as_bucket_view": True}
SOMETIMES = {"ddp": {"find_unused_parameters": True}, "extra": ((True, False) * 4, (True, False, False, True) * 2)}
RUNS = {
    "fp32": Run(),
    "fp32 views": Run(ddp=VIEWS),
    "bf16": Run(torch.bfloat16),
    "bf16 views": Run(torch.bfloat16, ddp=VIEWS),
    "static views": Run(options={**LENGTH, "strategy": "static", "max_grad_norm": 0.1}, ddp=VIEWS),
    "random": Run(options={**LENGTH, "method": "random"}),  # the same places although no gradient is asked
    "warm-up": Run(options={**LENGTH, "method": "diff", "method_kwargs": {"warmup_steps": 3}}, ddp=VIEWS),
    "whole": Run(options={"method": "full"}),
    "per entry": Run(torch.bfloat16, {**LENGTH, "bias_correction": "per_entry"}, dense_head=False, **SOMETIMES),
    "sgd": Run(options={**LENGTH, "momentum": 0.9}, kind=SelectiveSGD, ddp={**VIEWS, "static_graph": True}),
    "unused": Run(**SOMETIMES),
    "static graph": Run(ddp={"static_graph": True}),
    "no sync": Run(micro_batches=3),
    "no sync views": Run(torch.bfloat16, micro_batches=2, ddp=VIEWS),
    "not finite": Run(poisoned=(0, 3)),
    "not finite views": Run(torch.bfloat16, poisoned=(2,), ddp=VIEWS, options={**LENGTH, "method": "pafi-increment"}),
    "compressed": Run(compressed=True),
}


def optimizer(run, model):
    """Over a bare or a wrapped model."""
    named = list(model.named_parameters())
    whole = run.options.get("method") == "full"
    head = [pair for pair in named if "head" in pair[0]]
    rest = [pair for pair in named if "head" not in pair[0]]
    groups = [{"params": rest, "selective": not whole}, {"params": head, "selective": not (whole or run.dense_head)}]
    return run.kind(groups, lr=0.02, weight_decay=0.1, **run.options)


def loss_of(run, model, rank, step, micro):
    generator = torch.Generator().manual_seed(10_000 * rank + 100 * step + micro)
    tokens = torch.randint(0, 23, (4, 5), generator=generator)
    loss = model(tokens, run.extra[rank][step]).float().square().mean() / run.micro_batches
    return loss * float("nan") if step in run.poisoned and rank == RANKS - 1 else loss


def seen(opt):
    """What is selected now, by parameter."""
    return [opt.selected_indices(param) for param in opt._selective_params()]


def make_step(run, opt, history):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if run.poisoned else "error")
        opt.step()
    history.append(seen(opt))


def go(run, model, opt, rank, steps, history):
    """Training as users of DDP write it."""
    for step in steps:
        opt.zero_grad()
        for micro in range(run.micro_batches):
            with nullcontext() if micro == run.micro_batches - 1 else model.no_sync():
                loss_of(run, model, rank, step, micro).backward()
        make_step(run, opt, history)


def average(grads, compressed):
    """The mean over two ranks as DDP takes it: halves are exact, and so one rounding is left."""
    given = [grad for grad in grads if grad is not None]
    if not given:
        return None
    if compressed:
        return sum(grad.half() / RANKS for grad in given).to(given[0].dtype)
    return sum(grad / RANKS for grad in given)


def alone(run):
    """The same training in one process, which has both ranks' data."""
    model, history = Model(run.dtype), []
    opt = optimizer(run, model)
    params = list(model.parameters())
    for step in range(STEPS):
        by_rank = []
        for rank in range(RANKS):
            opt.zero_grad()
            for micro in range(run.micro_batches):
                loss_of(run, model, rank, step, micro).backward()
            by_rank.append([param.grad for param in params])
        for param, grads in zip(params, zip(*by_rank, strict=True), strict=True):
            param.grad = average(grads, run.compressed)
        make_step(run, opt, history)
    return result(model, opt, history)


def wrapped(run, seed=0):
    model = DistributedDataParallel(Model(run.dtype, seed), **run.ddp)
    if run.compressed:
        model.register_comm_hook(None, fp16_compress_hook)
    return model, optimizer(run, model)


def result(model, opt, history):
    params = list(model.parameters())
    addresses = [param.grad.data_ptr() for param in params if param.grad is not None]
    return {
        "history": history,
        "picture": picture(opt, params),
        "skipped": opt.skipped_steps,
        "unaligned": any(address % 16 for address in addresses),
    }


def together(run, rank, folder):
    (model, opt), history = wrapped(run), []
    go(run, model, opt, rank, range(STEPS), history)
    return result(model, opt, history)


def resumed(run, rank, folder):
    """Rank 0 saves amid the run; both ranks go on with new models, which are different until they load."""
    (model, opt), history = wrapped(run), []
    go(run, model, opt, rank, range(STOP), history)
    file = folder / "checkpoint.pt"
    if rank == 0:
        torch.save({"model": model.module.state_dict(), "optimizer": opt.state_dict()}, file)
    torch.distributed.barrier()
    model, opt = wrapped(run, seed=7)
    saved = torch.load(file, weights_only=True)
    model.module.load_state_dict(saved["model"])
    opt.load_state_dict(saved["optimizer"])
    go(run, model, opt, rank, range(STOP, STEPS), history)
    torch.distributed.barrier()  # the next case writes to the same file
    return result(model, opt, history)


RESUMED = ("fp32 views", "bf16", "static views", "warm-up", "per entry", "sgd")
CASES = {name: partial(together, run) for name, run in RUNS.items()}
CASES |= {f"resume {name}": partial(resumed, RUNS[name]) for name in RESUMED}
