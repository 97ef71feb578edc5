"""Tables over several places against the same tensors in one: every operation gives the same bits."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spreading import DTYPES, SCORES, UNTOUCHED, assert_same, problem, read_and_written, scanned, updated

from selective_kernels import Score, dispatch, scan, swap_, topk
from selective_kernels._spread import parts
from selective_kernels.table import Table
from selective_kernels.testing import DEALS, assert_same_index, pretended_places

BACKENDS = ["cpu", "reference"]
SHARES = [0.0, 0.01, 0.5]  # of entries that are selected already
KS = [0, 1, 50, 1000, 5000]
MIXES = {"fp32": DTYPES[:1], "bf16": DTYPES[1:2], "mixed": DTYPES}
TRITON = pytest.mark.skipif(
    bool(dispatch.unavailable("triton", "cpu")), reason=dispatch.unavailable("triton", "cpu") or "-"
)


def assert_places_do_not_matter(run, params, deal):
    """Runs without places and with them."""
    in_one, expected = run()
    with pretended_places(params, DEALS[deal]):
        in_several, actual = run()
    assert (in_one, in_several) == (False, True)
    assert_same(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(SCORES))
@settings(max_examples=25)
@given(data=st.data())
def test_c4_the_merged_best_are_those_of_one_scan(name, backend, data):
    """C3, C4: ties across places go to the lowest position; gradients gathered along the way are the same."""
    mix, style = data.draw(st.sampled_from(sorted(MIXES))), data.draw(st.sampled_from(["ties", "normal"]))
    params, grads, index = problem(data.draw(st.integers(0, 99)), MIXES[mix], style, data.draw(st.sampled_from(SHARES)))
    missing = data.draw(st.sets(st.sampled_from(range(len(params)))))
    k = data.draw(st.sampled_from(KS))
    if data.draw(st.booleans()):
        k = data.draw(st.lists(st.sampled_from([0, 1, 10, 60]), min_size=len(params), max_size=len(params)))
    at_once = data.draw(st.booleans())
    run = functools.partial(scanned, params, grads, index, k, SCORES[name], backend, missing, at_once)
    assert_places_do_not_matter(run, params, data.draw(st.sampled_from(sorted(DEALS))))


@TRITON
@pytest.mark.parametrize("name", ["d3, 2", "random", "given"])
def test_c4_merging_the_scans_of_triton(name):
    params, grads, index = problem(8, DTYPES, "ties", 0.1)
    assert_places_do_not_matter(
        functools.partial(scanned, params, grads, index, 90, SCORES[name], "triton"), params, "three places"
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [0, 4, 7])
def test_c9_a_gradient_that_is_not_finite_is_seen_in_every_place(bad, backend):
    params, grads, index = problem(1, DTYPES, "normal", 0.3)
    with pretended_places(params, DEALS["halves"]):
        for expected in (False, True):
            running = scan(params, index, 9, SCORES["d3, 2"], backend=backend)
            running.add(range(len(params)), grads)
            assert running.nonfinite is expected
            grads[bad].view(-1)[-1] = float("nan")


def test_pending_entries_of_own_scores_are_merged_on_the_way(monkeypatch):
    """Each `add` of the caller's own scores leaves up to k entries; they must not pile up, nor be lost."""
    monkeypatch.setattr("selective_kernels._spread.topk.PENDING", 10)
    params, grads, index = problem(2, DTYPES, "ties", 0.1)
    run = functools.partial(scanned, params, grads, index, 40, SCORES["given"], "cpu", (), False)
    assert_places_do_not_matter(run, params, "in turn")


def test_other_exponents_agree_with_one_scan():
    """C2: their scores are exact within a backend only; values as these are far from every tie."""
    params, grads, _ = problem(3, DTYPES[:1], "normal", 0.0)
    for score in (Score(1.7, 1.0), Score(-1.0, 1.0)):
        with pretended_places(params, DEALS["three places"]):
            spread = topk(params, grads, 500, score)
        assert_same_index(spread, topk(params, grads, 500, score))


# ------------------------------------------------------------------ single entries, updates


@pytest.mark.parametrize("bad", [None, 0, 3, 6])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("deal", sorted(DEALS))
@pytest.mark.parametrize("share", SHARES)
def test_single_entries_are_read_and_written_where_they_are(share, deal, backend, bad):
    results = []
    for places in (None, DEALS[deal]):
        params, grads, index = problem(4, DTYPES, "normal", share)
        if bad is not None:
            grads[bad].fill_(float("inf"))
        with nullcontext() if places is None else pretended_places(params, places):
            results.append(read_and_written(params, grads, index, backend))
    assert [spread for spread, _ in results] == [False, True]
    assert_same(results[1][1], results[0][1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("deal", sorted(DEALS))
@pytest.mark.parametrize("mix", sorted(MIXES))
@pytest.mark.parametrize(
    "options", [{"kind": "adam"}, {"kind": "adam", "per_entry": True}, {"kind": "sgd"}, {"kind": "sgd", "skip": 1}]
)
def test_c6_updates_of_entries_in_several_places(options, mix, deal, backend):
    """C6, C9: all entries are updated at home; a skipped update writes back what it was given."""
    results = []
    for places in (None, DEALS[deal]):
        params, _, index = problem(9, MIXES[mix], "normal", 0.3)
        before = [param.clone() for param in params]
        with nullcontext() if places is None else pretended_places(params, places):
            results.append(updated(params, index, backend, **options))
        assert all(map(torch.equal, params, before)) == bool(options.get("skip"))
    assert [spread for spread, _ in results] == [False, True]
    assert_same(results[1][1], results[0][1])


# ------------------------------------------------------------------ parts by size


@TRITON
@pytest.mark.parametrize("name", ["d3, 2", "random", "given"])
@pytest.mark.parametrize("k", [300, [5, 0, 1, 70, 3, 1, 0, 40]])
def test_c4_parts_of_a_triton_scan_end_at_the_limit(name, k, monkeypatch):
    """Totals beyond what one Triton scan can number: several scans of one device."""
    params, grads, index = problem(5, DTYPES, "ties", 0.1)
    expected = scanned(params, grads, index, k, SCORES[name], "cpu")
    monkeypatch.setattr(parts, "PART_LIMIT", 4200)
    numbers = [part.table.ids for part in parts.parts_of(Table(params), "triton", scanned=True)]
    assert numbers == [[0, 1, 2, 3, 4, 5], [6, 7]]  # 35 + 0 + 1 + 4087 + 30 + 1 entries, then 294 + 40
    assert len(parts.parts_of(Table(params), "cpu", scanned=True)) == 1
    assert_same(scanned(params, grads, index, k, SCORES[name], "triton")[1], expected[1])


def test_the_limit_is_what_triton_can_number():
    layout = pytest.importorskip("selective_kernels._triton.layout", reason="needs Triton")
    assert parts.PART_LIMIT == layout.MAX_ENTRIES


# ------------------------------------------------------------------ errors


def test_c14_a_forced_backend_has_to_serve_every_device(monkeypatch):
    """C14: named with the device, and before anything is read or written."""
    monkeypatch.setattr(dispatch, "unavailable", lambda backend, device: "it is not there" if backend == "cpu" else "")
    params, _, index = problem(6, DTYPES[:1], "normal", 0.1)
    before = [param.clone() for param in params]
    message = r"(?s)^params: expected devices that one backend serves, got tensors on cpu, and for cpu backend='cpu' .*"
    with pretended_places(params, DEALS["halves"]):
        for call in (
            lambda: scan(params, index, 3, SCORES["d3, 2"], backend="cpu"),
            lambda: swap_(params, index, torch.zeros(index.count, dtype=torch.int32), backend="cpu"),
        ):
            with pytest.raises(RuntimeError, match=message):
                call()
    assert_same(params, before)


@pytest.mark.parametrize("add", [[0, 1, 5], [1, 5]])
def test_c14_a_bad_gradient_in_another_place_comes_before_anything_is_read(add):
    params, grads, index = problem(7, DTYPES[:1], "normal", 0.5)
    out = torch.full((index.count,), UNTOUCHED)
    with pretended_places(params, DEALS["halves"]):
        running = scan(params, index, 3, SCORES["d3, 2"])
        grads[5] = grads[5].bfloat16()
        with pytest.raises(TypeError, match=r"^params\[5\]: expected a gradient of dtype"):
            running.add(add, [grads[i] for i in add], out)
    assert bool((out == UNTOUCHED).all())
