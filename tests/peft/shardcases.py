"""What the processes of test_sharded.py run: each way to shard a model, and what a selective optimizer says to it."""

import warnings
from functools import partial

import torch
import torch.distributed.checkpoint as dcp
from harness import leaves, make_params, train
from selective_peft import SelectiveAdamW
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.checkpoint import state_dict as calls
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer, _apply_optimizer_in_backward
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

LENGTH = {"budget": 40, "total_steps": 8}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))


def make_optimizer(params):
    return SelectiveAdamW(params, lr=1e-2, **LENGTH)


def backward(model):
    model(torch.ones(4, 10)).square().mean().backward()


def steps(model, opt, count):
    for _ in range(count):
        opt.zero_grad()
        backward(model)
        opt.step()


def fsdp1(model, use_orig_params):
    return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))


def parallel(model):
    return parallelize_module(model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel()})


SHARDED = {
    "fsdp1 originals": lambda: fsdp1(make_model(), True),
    "fsdp1 flat": lambda: fsdp1(make_model(), False),
    "fsdp2": lambda: fully_shard(make_model()),
    "tensor parallel": lambda: parallel(make_model()),
}


def copies(tensors):
    return [(tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone() for tensor in tensors]


def inside(opt):
    """What `state_dict` would tell, without calling it: it refuses sharded parameters as well."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in opt.param_groups]
    chosen = {}
    if opt._selection is not None:
        offsets, arrays = opt._selection.index.valid, opt._selection.arrays
        chosen = {"step": opt._selection.step, "skipped": opt.skipped_steps, "offsets": offsets, **arrays}
    found = leaves([groups, list(opt.state.values()), chosen, [len(group["params"]) for group in opt.param_groups]])
    return {path: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for path, leaf in found.items()}


def attempt(act, params, opt=None):
    """What is said, and whether anything is another than before: parameters, gradients, hyper-parameters, state."""

    def look():
        grads = [param.grad for param in params if param.grad is not None]
        tensors = dict(enumerate(copies([*params, *grads])))
        return {**tensors, **({} if opt is None else inside(opt))}

    before, said = look(), "nothing"
    try:
        act()
    except NotImplementedError as error:
        said = f"{type(error).__name__}: {error}"
    after = look()
    unchanged = after.keys() == before.keys() and all(
        torch.equal(leaf, before[path]) if isinstance(leaf, torch.Tensor) else leaf == before[path]
        for path, leaf in after.items()
    )
    return {"said": said, "unchanged": unchanged}


def construct(shard, rank, folder):
    params = list(SHARDED[shard]().named_parameters())
    return attempt(lambda: make_optimizer(params), [param for _, param in params])


def construct_dense(shard, rank, folder):
    params = list(SHARDED[shard]().parameters())
    groups = [{"params": make_params([(9, 9)])}, {"params": params, "selective": False}]
    return attempt(lambda: make_optimizer(groups), params)


def add_group(shard, rank, folder):
    mine, params = make_params([(9, 9)]), list(SHARDED[shard]().parameters())
    opt = make_optimizer(mine)
    train(opt, mine, 0, 2)
    return attempt(lambda: opt.add_param_group({"params": params, "selective": False}), [*mine, *params], opt)


def shard_later(shard, selective, done, rank, folder):
    """The model is sharded `done` steps after the optimizer was built, which follows it."""
    model = make_model()
    groups = [{"params": make_params([(9, 9)])}, {"params": list(model.parameters()), "selective": selective}]
    opt = make_optimizer(groups)
    steps(model, opt, done)
    opt.zero_grad()
    model = fsdp1(model, True) if shard == "fsdp1 originals" else fully_shard(model)
    if shard == "fsdp2":  # as Accelerate does
        opt.param_groups[1]["params"] = list(model.parameters())
    backward(model)
    return attempt(opt.step, opt.param_groups[1]["params"], opt)


def resume_later(load, rank, folder):
    model = make_model()
    opt, other = make_optimizer(model.named_parameters()), make_model()
    trained = make_optimizer(other.named_parameters())
    steps(other, trained, 2)
    state = trained.state_dict()
    opt.param_groups[0]["params"] = params = list(fully_shard(model).parameters())
    return attempt((lambda: opt.load_state_dict(state)) if load else opt.state_dict, params, opt)


def left_behind(shard, rank, folder):
    """The optimizer holds tensors that the sharded model has no more, so they never have a gradient."""
    model = make_model()
    opt = make_optimizer(model.named_parameters())
    backward(fsdp1(model, False) if shard == "fsdp1 flat" else fully_shard(model))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.step()
    return [str(each.message) for each in caught]


def divided(kind, rank, folder):
    """Optimizers of torch.distributed.optim, which make or step one for a part of the model or of the data."""
    model = make_model()
    params = list(model.parameters())
    backward(model)
    if kind == "local sgd":
        opt = make_optimizer(params)
        return attempt(PostLocalSGDOptimizer(opt, PeriodicModelAverager(period=2)).step, params, opt)
    make = {
        "zero redundancy": lambda: ZeroRedundancyOptimizer(params, SelectiveAdamW, **LENGTH),
        "in backward": lambda: _apply_optimizer_in_backward(SelectiveAdamW, params, LENGTH),
    }
    return attempt(make[kind], params)


def checkpoint(call, done, rank, folder):
    """torch.distributed.checkpoint's calls for an ordinary DDP model, before the first step or amid training."""
    model = DistributedDataParallel(make_model())
    opt = make_optimizer(model.named_parameters())
    steps(model, opt, done)
    opt.zero_grad()
    acts = {
        "get_optimizer_state_dict": lambda: calls.get_optimizer_state_dict(model, opt),
        "get_state_dict": lambda: calls.get_state_dict(model, opt),
        "set_optimizer_state_dict": lambda: calls.set_optimizer_state_dict(model, opt, opt.state_dict()),
        "set_state_dict": lambda: calls.set_state_dict(
            model, opt, model_state_dict=model.state_dict(), optim_state_dict=opt.state_dict()
        ),
        "save": lambda: dcp.save({"optimizer": opt}, checkpoint_id=folder / f"dcp{done}"),
        "load": lambda: dcp.load({"optimizer": opt}, checkpoint_id=folder / f"dcp{done}"),
    }
    return attempt(acts[call], list(model.parameters()), opt)


CALLS = ("get_optimizer_state_dict", "get_state_dict", "set_optimizer_state_dict", "set_state_dict", "save", "load")
DIVIDED = ("zero redundancy", "in backward", "local sgd")
LATER = [("fsdp1 originals", True, 0), ("fsdp1 originals", True, 2), ("fsdp1 originals", False, 0)]
LATER += [("fsdp2", True, 0), ("fsdp2", False, 0), ("fsdp2", False, 2), ("fsdp2", True, 2)]
TRAINING = {
    **{f"construct {shard}": partial(construct, shard) for shard in SHARDED},
    **{f"construct dense {shard}": partial(construct_dense, shard) for shard in SHARDED},
    **{f"add {shard}": partial(add_group, shard) for shard in SHARDED},
    **{f"later {shard} {whole} {done}": partial(shard_later, shard, whole, done) for shard, whole, done in LATER},
    "load": partial(resume_later, True),
    "save": partial(resume_later, False),
    **{kind: partial(divided, kind) for kind in DIVIDED},
}
CHECKPOINTS = {f"{call} after {done}": partial(checkpoint, call, done) for done in (0, 2) for call in CALLS}
LEFT_BEHIND = {f"left behind by {shard}": partial(left_behind, shard) for shard in ("fsdp1 flat", "fsdp2")}
CASES = {**TRAINING, **CHECKPOINTS, **LEFT_BEHIND}
