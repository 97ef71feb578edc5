"""The suite of operations gives no time of a wrong result: neither of ours nor of a rival that does other work."""

from dataclasses import replace

import pytest
import torch
from opcases import BASE, RIVALS

from benchmarks import __main__ as entry
from benchmarks import op_indexing, op_merging, op_problem, op_topk, op_update
from benchmarks.gate import Mismatch
from benchmarks.op_problem import NONE, make
from benchmarks.ops import MAKERS
from selective_kernels import SparseIndex, dispatch, topk
from selective_kernels.testing import num_threads


@pytest.fixture(autouse=True)
def one_thread():
    with num_threads(1):
        yield


@pytest.mark.parametrize("op", MAKERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_right_results_pass(op, dtype):
    made = MAKERS[op](make(replace(BASE, dtype=dtype)))
    made.check()
    alone = op == "update" and dtype == "float16"  # torch's moments cannot hold squares of gradients there
    assert [each.name for each in made.contenders] == ["ours"] + ([] if alone else RIVALS[op])


@pytest.mark.skipif(bool(dispatch.unavailable("triton", "cpu")), reason="needs Triton's interpreter")
@pytest.mark.parametrize("op", MAKERS)
def test_the_kernels_for_gpus_go_through_the_same_checks(op):
    """In the interpreter, on CPU tensors; the rivals are the same PyTorch calls on every device."""
    made = MAKERS[op](make(replace(BASE, model="tiny", dtype="bfloat16", selected=0.03, backend="triton"), NONE))
    made.check()
    assert made.nbytes > 0


@pytest.mark.parametrize("op", MAKERS)
def test_what_was_timed_can_be_timed_again(op):
    """Runs leave a problem as the next run needs it: three rounds, then another check."""
    problem = make(BASE)
    made = MAKERS[op](problem)
    for number in range(3):
        for contender in made.contenders:
            contender.prepare(number)
            contender.run()
    MAKERS[op](problem).check()


def moved(index):
    """Another index of as many entries: the first entry of the first tensor that has one lies elsewhere."""
    offsets = index.valid.clone()
    offsets[0] = offsets[0] - 1 if offsets[0] > 0 else offsets[0] + 1
    return SparseIndex(offsets, index.starts)


def broken_scan(real):
    class Wrong:
        def __init__(self, *given, **named):
            self._scan = real(*given, **named)

        def add(self, *given):
            self._scan.add(*given)

        def finalize(self):
            return moved(self._scan.finalize())

    return Wrong


def one_off(real):
    """The operation, then one entry of what it wrote is another one."""

    def wrong(tensors, index, *given, backend="auto", **named):
        found = real(tensors, index, *given, backend=backend, **named)
        if backend != "reference":
            written = found if found is not None else tensors.params[0].view(-1)
            written[0] += 1
        return found

    return wrong


def late_adam(real):
    def wrong(update, *given, backend):
        real(update if backend == "reference" else replace(update, clip=0.5, steps=[9] * len(update.steps)), *given)

    return wrong


def careless_merge(real):
    def wrong(index, new, arrays, *, backend):
        real(index, new, arrays if backend == "reference" else [(data, None) for data, _ in arrays])

    return wrong


BROKEN = {
    "scan+topk": (op_topk, "scan", broken_scan, "not those of the best scores"),
    "update": (op_update, "adam_", late_adam, "update, ours"),
    "merge": (op_merging, "merge_", careless_merge, "merge, ours"),
    "gather": (op_indexing, "gather", one_off, "gather, ours"),
    "scatter": (op_indexing, "scatter_", one_off, "scatter, ours"),
    "swap": (op_indexing, "swap_", one_off, "swap, ours"),
}


@pytest.mark.parametrize("op", MAKERS)
def test_a_wrong_kernel_is_reported_instead_of_times(monkeypatch, tmp_path, capsys, op):
    module, name, breaking, words = BROKEN[op]
    monkeypatch.setattr(module, name, breaking(getattr(module, name)))
    path = tmp_path / "ops.csv"
    given = ["ops", "--preset", "small", "--models", "64k", "--axes", "base", "--ops", op, "--csv", str(path)]
    assert entry.main(given) == 1
    assert words in capsys.readouterr().err
    assert not path.exists()


def test_an_update_that_touches_others_is_wrong(monkeypatch):
    real = op_update.adam_

    def touching(update, *given, backend):
        real(update, *given, backend=backend)
        if backend == "cpu":
            update.table.params[0].view(-1)[0] += 1  # not selected, see below

    problem = make(BASE)
    assert 0 not in problem.index.of(0)
    monkeypatch.setattr(op_update, "adam_", touching)
    with pytest.raises(Mismatch, match="without being selected"):
        op_update.made(problem).check()


def unscored(theta, grad, scores):
    scores.copy_(grad)


def test_a_scan_rival_that_ranks_something_else_is_wrong(monkeypatch):
    monkeypatch.setattr(op_topk, "write_scores", unscored)
    with pytest.raises(Mismatch, match=op_topk.TOPK):
        op_topk.made(make(BASE)).check()


def test_an_update_rival_that_steps_elsewhere_is_wrong(monkeypatch):
    monkeypatch.setitem(op_update.RIVALS, op_update.FOREACH, {"foreach": True, "maximize": True})
    with pytest.raises(Mismatch, match=f"update, {op_update.FOREACH}"):
        op_update.made(make(BASE)).check()


def test_a_merge_rival_that_keeps_another_order_is_wrong(monkeypatch):
    sort = op_merging.by_sorting
    monkeypatch.setattr(op_merging, "by_searching", lambda *given: [each.flip(0) for each in sort(*given)])
    with pytest.raises(Mismatch, match=f"merge, {op_merging.SEARCH}"):
        op_merging.made(make(BASE)).check()


@pytest.mark.parametrize("op", ["gather", "scatter", "swap"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_indexing_rival_that_does_nothing_is_wrong(monkeypatch, op, number):
    made, real, way = MAKERS[op](make(BASE)), op_indexing.check_ways, RIVALS[op][number]

    def forgetful(name, ways, expected):
        real(name, [each._replace(run=lambda: None) if each.name == way else each for each in ways], expected)

    monkeypatch.setattr(op_indexing, "check_ways", forgetful)
    with pytest.raises(Mismatch, match=f"{op}, {way}"):
        made.check()


@pytest.mark.parametrize(
    ("scores", "k", "found", "right"),
    [
        ([1, 3, 2, 3], 2, [1, 3], True),
        ([1, 3, 2, 3], 2, [1, 2], False),
        ([2, 2, 2, 2], 2, [0, 1], True),  # ties go to the lower position
        ([2, 2, 2, 2], 2, [0, 2], False),
        ([2, 2, 3, 2], 2, [0, 2], True),
        ([2, 2, 3, 2], 2, [1, 2], False),
        ([0, 5, 0], 2, [1], True),  # nothing else may be selected
        ([0, 5, 0], 2, [0, 1], False),
        ([0, 5, 0], 1, [0], False),
        ([4, 5, 6], 2, [2, 1], False),
        ([4, 5, 6], 2, [2, 2], False),
        ([4, 5, 6], 2, [2], False),
        ([0, 0], 1, [], True),
    ],
)
def test_the_gate_of_the_scan_knows_the_best(scores, k, found, right):
    given = torch.tensor(found, dtype=torch.int64), torch.tensor(scores, dtype=torch.float32), k
    if right:
        op_topk.verify(*given)
    else:
        with pytest.raises(Mismatch):
            op_topk.verify(*given)


def test_scores_of_the_rivals_are_those_of_the_reference():
    problem = make(BASE)
    sizes = [param.numel() for param in problem.params]
    out = [torch.empty_like(param) for param in problem.params]
    for param, grad, scores in zip(problem.params, problem.grads, out, strict=True):
        op_topk.write_scores(param, grad, scores)
    best = op_topk.best_by_tensor(torch.cat([each.view(-1) for each in out]), sizes, 50)
    exact = topk(problem.params, problem.grads, 50, op_problem.SCORE, backend="reference")
    assert best.tolist() == op_problem.flat_positions(exact, problem.params).tolist()
