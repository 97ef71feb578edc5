"""Tables over several devices: nothing is computed on two of them at once, and the results are those of one device."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import pytest
import torch
from elsewhere import AWAY, Elsewhere, two_devices
from spreading import DTYPES, SCORES, assert_same, problem, read_and_written, scanned, updated

from selective_kernels import Score, SparseIndex, Table, gather, scan, topk

CPU = torch.device("cpu")
GPUS = torch.cuda.device_count()
ONE_GPU = pytest.mark.skipif(GPUS < 1, reason="needs a CUDA GPU beside the CPU")
TWO_GPUS = pytest.mark.skipif(GPUS < 2, reason="needs two CUDA GPUs")
DEVICES = [
    pytest.param((CPU, AWAY), id="cpu first"),
    pytest.param((AWAY, CPU), id="cpu second"),
    pytest.param((torch.device("cuda:0"), CPU), id="gpu, cpu", marks=ONE_GPU),
    pytest.param((CPU, torch.device("cuda:0")), id="cpu, gpu", marks=ONE_GPU),
    pytest.param((torch.device("cuda:0"), torch.device("cuda:1")), id="two gpus", marks=TWO_GPUS),
]
KINDS = [{"kind": "adam"}, {"kind": "adam", "per_entry": True}, {"kind": "sgd"}, {"kind": "sgd", "skip": 1}]
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-12, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def dealt(tensors, devices):
    """The first half of the tensors on one device, the rest on another."""
    half = len(tensors) // 2
    return [tensor.to(devices[i >= half]) for i, tensor in enumerate(tensors)]


def assert_devices_do_not_matter(devices, run, same=assert_same, expected=None):
    """run(params, grads, index) dealt out gives what is expected: without, what it gives on the CPU."""
    if expected is None:
        _, expected = run(*problem(11, DTYPES, "ties", 0.3))
    with two_devices() if AWAY in devices else nullcontext():
        params, grads, index = problem(11, DTYPES, "ties", 0.3)
        home = SparseIndex(index.offsets.to(devices[0]), index.starts)
        spread, actual = run(dealt(params, devices), dealt(grads, devices), home)
        assert spread
        same(actual, expected)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("k", [0, 90, [5, 0, 1, 70, 3, 1, 0, 40]])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("name", sorted(SCORES))
def test_c4_scans(name, at_once, k, devices):
    run = functools.partial(scanned, k=k, score=SCORES[name], backend="auto", at_once=at_once)
    assert_devices_do_not_matter(devices, run)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("missing", [range(4), range(4, 8), range(8)], ids=["the second", "the first", "none"])
def test_c4_gradients_on_one_device_only(missing, devices):
    """One scan's result is then everybody's."""
    run = functools.partial(scanned, k=90, score=SCORES["d3, 2"], backend="auto", missing=missing)
    assert_devices_do_not_matter(devices, run)


@pytest.mark.parametrize("devices", DEVICES)
def test_single_entries(devices):
    assert_devices_do_not_matter(devices, lambda *given: read_and_written(*given, "auto"))


def assert_close(actual, expected):
    """As `assert_same`, but for what backends of different devices may round differently."""
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs.cpu(), rtol=ROUNDING[mine.dtype], atol=1e-6)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("options", KINDS)
def test_c6_updates(options, devices):
    """All entries are updated by the home device's backend."""
    alone = {"cpu": "cpu", "meta": "reference", "cuda": "cpu"}[devices[0].type]
    same = assert_close if devices[0].type == "cuda" else assert_same
    _, expected = updated(*problem(11, DTYPES, "ties", 0.3)[::2], alone, **options)
    run = functools.partial(updated, backend="auto", **options)
    assert_devices_do_not_matter(devices, lambda params, _, index: run(params, index), same, expected)


def test_tensors_elsewhere_do_not_mix():
    """Otherwise the tests above could not fail."""
    with two_devices():
        away = torch.zeros(3).to(AWAY)
        assert isinstance(away, Elsewhere)
        with pytest.raises(RuntimeError, match="expected tensors on one device"):
            away.add_(torch.ones(3))
        away.copy_(torch.ones(3))
        assert away.cpu().tolist() == [1.0, 1.0, 1.0]


def test_c14_an_offloaded_tensor_among_others_is_refused():
    """Its values are not there: it would be taken for a tensor of another device."""
    mixed = [torch.zeros(6), torch.zeros(4, device="meta")]
    with pytest.raises(ValueError, match=r"^params\[1\]: expected a tensor with values, got one on meta"):
        topk(mixed, mixed, 1, Score(2.0, 1.0))


def test_c14_a_gradient_on_another_device_is_refused():
    """The home device is no excuse: a gradient is read where its tensor is."""
    with two_devices():
        params = [torch.zeros(6), torch.zeros(4).to(AWAY)]
        running = scan(params, SparseIndex.empty(2), 1, Score(2.0, 1.0))
        with pytest.raises(ValueError, match=r"^params\[1\]: expected a gradient on meta, got cpu$"):
            running.add([0, 1], [torch.ones(6), torch.ones(4)])
        with pytest.raises(ValueError, match=r"^index: expected offsets on cpu as the tensors, got meta$"):
            gather(params, SparseIndex(torch.zeros(1, dtype=torch.int32).to(AWAY), [0, 0, 1]))


def test_c1_a_table_notices_that_a_tensor_went_to_another_device():
    with two_devices():
        params = [torch.nn.Parameter(torch.zeros(6)), torch.nn.Parameter(torch.zeros(4))]
        table, index = Table(params), SparseIndex.from_lists([[0, 5], [3]])
        gather(table, index)
        table.params[1] = params[1].detach().to(AWAY)
        assert not table.unchanged()
        table = Table(table.params)
        assert gather(table, index).tolist() == [0.0, 0.0, 0.0]
        table.params[1] = params[1]
        assert not table.unchanged()
