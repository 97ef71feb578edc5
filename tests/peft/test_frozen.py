"""C7: frozen means bit-identical; C10: a change can be undone bit for bit."""

import pytest
import torch
from harness import KINDS, SCALARS, make_params, train
from selective_peft import D3, SelectiveAdamW, SelectiveSGD
from torch.nn import Parameter

from selective_kernels import SparseIndex, swap_
from selective_kernels.testing import assert_bitwise_equal

STEPS = 100
BUDGET = 300  # 7 % of the harness model: nearly every tensor holds both kinds of entries
DECAY = 0.5  # far too much for training: one step of leaked decay moves every parameter
# Bit patterns that arithmetic would not give back: both zeros, subnormals, the largest, infinities, a NaN with payload.
STRANGE = [0x0000, 0x8000, 0x0001, 0x8001, 0x7BFF, 0x7C00, 0xFC00, 0x7E01]
STRANGE_32 = [0, 0x80000000, 1, 0x80000001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001]


def mask_of(opt, param):
    mask = torch.zeros(param.numel(), dtype=torch.bool)
    mask[opt.selected_indices(param)] = True
    return mask.reshape(param.shape)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_frozen_entries_keep_every_bit(kind, dtype, backend):
    """C7 with weight decay on, after 100 steps; the selected entries did change."""
    params = make_params(dtype=dtype)
    before = [param.detach().clone() for param in params]
    opt = KINDS[kind](params, lr=1e-2, weight_decay=DECAY, budget=BUDGET, total_steps=STEPS // 2, backend=backend)
    train(opt, params, 0, STEPS)
    assert opt.num_selected == BUDGET < SCALARS
    changed = 0
    for i, (param, old) in enumerate(zip(params, before, strict=True)):
        mask = mask_of(opt, param)
        assert_bitwise_equal(param.detach()[~mask], old[~mask], f"frozen entries of params[{i}]")
        changed += int((param.detach()[mask] != old[mask]).sum())
    assert changed > 0.99 * BUDGET  # with lr 0.01 over 50 or more steps hardly an entry comes back to where it was


def test_frozen_neighbours_of_strange_bits_stay(dtype, backend):
    """C7: zeros' signs, subnormals, infinities and NaN payloads next to trained entries survive."""
    patterns, as_int = (STRANGE_32, torch.int32) if dtype == torch.float32 else (STRANGE, torch.int16)
    width = 8 * as_int.itemsize
    signed = [bits - 2**width if bits >= 2 ** (width - 1) else bits for bits in patterns]
    bits = torch.tensor(signed, dtype=as_int).repeat(40)
    param = Parameter(bits.view(dtype).clone())
    trained = torch.arange(0, len(bits), 9)  # passes over every pattern
    with torch.no_grad():
        param[trained] = 0.25
    before = param.detach().clone()
    opt = SelectiveAdamW([param], lr=1e-2, weight_decay=DECAY, budget=len(trained), total_steps=1, backend=backend)
    for _ in range(5):
        param.grad = torch.zeros_like(param)
        param.grad[trained] = 1.0
        opt.step()
    assert torch.equal(opt.selected_indices(param), trained)
    mask = mask_of(opt, param)
    assert_bitwise_equal(param.detach()[~mask], before[~mask])
    assert bool((param.detach()[mask] < 0.25).all())


def test_a_selected_entry_without_gradient_is_left_alone(backend):
    """C8, C7: decay and momentum wait while the tensor's gradient is None."""
    params = make_params([(50,), (60,)])
    opt = SelectiveSGD(
        params, lr=0.1, momentum=0.9, weight_decay=DECAY, budget=60, total_steps=1, score=D3(exp=0.0), backend=backend
    )
    train(opt, params, 0, 2)
    assert len(opt.selected_indices(params[1])) > 5
    before = params[1].detach().clone()
    for _ in range(3):
        params[0].grad, params[1].grad = torch.ones(50), None
        opt.step()
    assert_bitwise_equal(params[1].detach(), before)


def test_original_bits_undo_the_training(dtype, backend):
    """C10: swapping the kept bits in restores the model bit for bit; swapping again, the trained one."""
    params = make_params(dtype=dtype)
    before = [param.detach().clone() for param in params]
    opt = SelectiveAdamW(params, lr=1e-2, weight_decay=DECAY, budget=BUDGET, total_steps=10, backend=backend)
    train(opt, params, 0, 15)
    after = [param.detach().clone() for param in params]
    state = opt.state_dict()["state"]["selective"]
    index = SparseIndex(state["offsets"], state["starts"].tolist())
    bits = state["arrays"]["original"].clone()
    swap_(params, index, bits)
    for param, old in zip(params, before, strict=True):
        assert_bitwise_equal(param.detach(), old)
    swap_(params, index, bits)
    for param, new in zip(params, after, strict=True):
        assert_bitwise_equal(param.detach(), new)


def test_a_frozen_parameter_is_never_selected(backend):
    """C3, C7: requires_grad=False leaves no gradient, so nothing is scored or decayed there."""
    params = make_params([(50,), (60,)])
    params[1].requires_grad_(False)
    before = params[1].detach().clone()
    opt = SelectiveAdamW(params, weight_decay=DECAY, budget=50, total_steps=1, score=D3(exp=0.0), backend=backend)
    for _ in range(3):
        params[0].grad = torch.ones(50)
        opt.step()
    assert len(opt.selected_indices(params[0])) == 50
    assert len(opt.selected_indices(params[1])) == 0
    assert_bitwise_equal(params[1].detach(), before)
