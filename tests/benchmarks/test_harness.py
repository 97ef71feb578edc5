"""The benchmarks' timer: everybody takes a turn in every round, and only runs are timed."""

import gc
import time

import pytest
import torch

from benchmarks.harness import Contender, Timing, interleave, read_probe


def test_ratio_compares_within_rounds():
    """A machine that gets three times slower half-way changes no ratio."""
    slow, fast = Timing((2.0, 2.0, 6.0, 6.0)), Timing((1.0, 1.0, 3.0, 3.0))
    assert slow.ratio(fast) == 2.0
    assert fast.ratio(slow) == 0.5
    assert (slow.median, slow.low, slow.high) == (4.0, 2.0, 6.0)


def test_ratio_with_a_rival_that_took_part_in_fewer_rounds_uses_the_common_ones():
    assert Timing((10.0, 30.0)).ratio(Timing((1.0, 3.0, 100.0))) == 10.0


def test_each_contender_runs_once_per_round_and_the_first_one_changes():
    calls = []
    contenders = [
        Contender(name, lambda name=name: calls.append(name), rounds=2 if name == "c" else None) for name in "abc"
    ]
    timings = interleave(contenders, rounds=4, warmups=1)
    assert [len(timings[name].seconds) for name in "abc"] == [4, 4, 2]
    rounds = ["".join(calls[:3]), "".join(calls[3:6]), "".join(calls[6:9])]
    assert rounds == ["abc", "bca", "cab"]
    assert sorted(calls[9:]) == ["a", "a", "b", "b"]


def test_a_timer_says_which_seconds_count():
    """Device events, say: it calls what it is given once, and its answer is the time."""
    calls = []

    def timer(run):
        run()
        return float(len(calls))

    contenders = [Contender(name, lambda name=name: calls.append(name)) for name in "ab"]
    timings = interleave(contenders, rounds=2, warmups=1, timer=timer)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert (timings["a"].seconds, timings["b"].seconds) == ((4.0, 5.0), (3.0, 6.0))


def test_preparation_is_told_the_round_and_not_timed():
    rounds = []

    def prepare(number):
        rounds.append(number)
        time.sleep(0.02)

    timing = interleave([Contender("only", lambda: None, prepare)], rounds=3, warmups=2)["only"]
    assert rounds == [0, 1, 2, 3, 4]
    assert timing.high < 0.02


def test_garbage_collection_is_off_while_timing_and_back_on_after_an_error():
    seen = []

    def fail():
        seen.append(gc.isenabled())
        raise RuntimeError("contender")

    with pytest.raises(RuntimeError, match="contender"):
        interleave([Contender("bad", fail)], rounds=1)
    assert seen == [False]
    assert gc.isenabled()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="rounds: expected an integer >= 1, got 0"):
        interleave([Contender("a", lambda: None)], rounds=0)
    with pytest.raises(ValueError, match="contenders: expected distinct names"):
        interleave([Contender("a", lambda: None)] * 2, rounds=1)


def test_read_probe_reads_the_parameters_and_one_set_of_gradients():
    """Its xor, folded to 32 bits, is that of all words read."""
    params = [torch.tensor([1, 2, 4], dtype=torch.int32).view(torch.float32)]
    sets = [[torch.tensor([8, 16, 32 << n], dtype=torch.int32).view(torch.float32)] for n in range(2)]
    probe = read_probe(params, sets)
    for number, gradient_words in ((0, 8 | 16 | 32), (1, 8 | 16 | 64), (2, 8 | 16 | 32)):
        probe.prepare(number)
        words = probe.run() & 0xFFFFFFFFFFFFFFFF
        assert (words ^ words >> 32) & 0xFFFFFFFF == (1 | 2 | 4 | gradient_words)
