"""Bytes that are no code of an index list: an error or a list as promised, the same from every backend, no crash."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from gapcodes import BACKENDS, as_code, assert_valid_or_refused, clustered_offsets, coded, outcome, random_offsets
from hypothesis import given
from hypothesis import strategies as st

from selective_kernels import decode_gaps, encode_gaps
from selective_kernels.gaps import BLOCK

# Bytes, how many offsets, limit, and what is wrong with them.
DAMAGED = {
    "nothing": ("", 1, 10, "2 bytes or more for 1 offsets, got 0"),
    "no end": ("00 00 00", 8, 10, "8 offsets, got 3 bytes that end within block 0"),
    "low bits missing": ("1e 01 02", 1, 2**31, "1 offsets, got 3 bytes that end within block 0"),
    "second block missing": ("00" + "ff" * 8 + "00", 65, 99, "11 bytes or more for 65 offsets, got 10"),
    "second block not begun": ("00" + "55" * 16, 65, 999, "65 offsets, got 17 bytes that end within block 1"),
    "parameter": ("1f 00 00 00 00 01", 1, 2**31, "parameters of at most 30, got a larger one in block 0"),
    "parameter 255": ("ff" * 40, 1, 2**31, "parameters of at most 30, got a larger one in block 0"),
    "parameter of the second block": ("00" + "ff" * 8 + "40 01", 65, 99, "parameters of at most 30.* in block 1"),
    "quotient of 3": ("00 08", 1, 10, "quotients that add up to at most 2 per offset, got more in block 0"),
    "no one in reach": ("00 00 ff", 1, 10, "quotients that add up to at most 2 per offset, got more in block 0"),
    "quotient of 7 for two": ("00 81", 2, 10, "quotients that add up to at most 2 per offset, got more in block 0"),
    "bits after the quotients": ("00 03", 1, 10, "zeros in the bits that a part leaves over, got ones in block 0"),
    "bits after the low bits": ("01 02 01", 1, 10, "zeros in the bits that a part leaves over, got ones in block 0"),
    "offset at the limit": ("00 04", 1, 2, "offsets below 2, got one that is not in block 0"),
    "offset beyond int32": ("1e ff ff ff 3f 04", 1, 2**31, "offsets below 2147483648, got one that is not in block 0"),
    "bytes left over": ("00 01 00", 1, 10, "1 offsets in 3 bytes, got bytes that are left over"),
    "bytes for no offsets": ("00", 0, 10, "0 offsets in 1 bytes, got bytes that are left over"),
    "more offsets than fit": ("00 ff", 8, 7, "0 to 7 offsets below 7, got 8"),
    "negative count": ("00 ff", -1, 7, "0 to 7 offsets below 7, got -1"),
    "count of 2^31": ("00 ff", 2**31, 2**31, "301989888 bytes or more for 2147483648 offsets, got 2"),
    "count of 10^30": ("00 ff", 10**30, 2**31, f"0 to 2147483648 offsets below 2147483648, got {10**30}"),
}


@pytest.mark.parametrize(("code", "count", "limit", "message"), DAMAGED.values(), ids=DAMAGED)
def test_c14_damaged_codes_are_refused(code, count, limit, message):
    """C14: the message says what was expected and what was found; both backends say the same."""
    found = outcome(as_code(bytes.fromhex(code)), count, limit)
    assert re.fullmatch(f"gaps: expected ({message})", str(found)), found


def test_quotients_up_to_the_bound_and_no_further():
    """A quotient of 2 per offset is what an encoder can need, and the most that a decoder takes."""
    for m in (1, 2, 5, 8, 63, 64):
        ones = np.zeros(8 * math.ceil((3 * m + 1) / 8), np.uint8)
        ones[: m - 1] = ones[3 * m - 1] = 1
        fits = np.packbits(ones[: 8 * math.ceil(3 * m / 8)], bitorder="little")
        assert outcome(as_code([0, *fits]), m, 1000) == [*range(m - 1), 3 * m - 1]
        ones[3 * m - 1 : 3 * m + 1] = 0, 1
        assert "2 per offset" in outcome(as_code([0, *np.packbits(ones, bitorder="little")]), m, 1000)


@pytest.mark.parametrize("limit", [-1, 2**31 + 1])
def test_c14_limits_out_of_range_are_refused(limit):
    """C14: offsets are int32."""
    with pytest.raises(ValueError, match=rf"^limit: expected an integer in \[0, 2\^31\], got {limit}$"):
        decode_gaps(as_code([]), 0, limit)


@pytest.mark.parametrize("offsets", [random_offsets(0.01, 200), clustered_offsets(230)], ids=["random", "runs"])
def test_no_part_of_a_code_is_a_code(offsets):
    """Truncated at every length, and with one byte more; each in memory that ends where it ends."""
    code, count = coded(offsets), len(offsets)
    for length in range(len(code)):
        assert "bytes" in outcome(code[:length].clone(), count, 2**31)
    for byte in (0, 1, 8, 255):
        assert "left over" in outcome(torch.cat([code, as_code([byte])]), count, 2**31)
    for other in (count - 1, count + 1, count - BLOCK, count + BLOCK):
        assert assert_valid_or_refused(code, other, 2**31)


@pytest.mark.parametrize("offsets", [random_offsets(0.01, 100), clustered_offsets(400)], ids=["random", "runs"])
def test_flipped_bits_give_an_error_or_another_list(offsets):
    code, numel = coded(offsets), 2 * int(offsets[-1])
    refused = []
    for bit in range(8 * len(code)):
        flipped = code.clone()
        flipped[bit // 8] ^= 1 << bit % 8
        refused.append(assert_valid_or_refused(flipped, len(offsets), numel))
        if not refused[-1]:
            assert outcome(flipped, len(offsets), numel) != offsets.tolist()
    assert 0 < sum(refused) < len(refused)


@pytest.mark.parametrize("k", [0, 1, 7, 29, 30])
def test_quotients_without_end_are_looked_for_within_the_code(k):
    """The longest blocks there can be, cut off at every length; each in memory that ends where it ends."""
    for m in (1, 7, 63, 64):
        longest = 1 + math.ceil(m * k / 8) + math.ceil(3 * m / 8)
        for length in range(2, longest + 10):
            code = torch.zeros(length, dtype=torch.uint8)
            code[0] = k
            if length >= math.ceil(m / 64) + math.ceil(m / 8):
                expected = "end within block 0" if length < longest else "2 per offset"
                assert expected in outcome(code, m, 2**31)


@pytest.mark.parametrize("around", [0, 255])
def test_what_lies_around_a_code_does_not_matter(around):
    """It may be any part of a file: at an odd address, with other bytes before and behind it."""
    offsets = random_offsets(0.01, 200)
    code = coded(offsets)
    file = torch.full((len(code) + 1000,), around, dtype=torch.uint8)
    for begin in (1, 3, 8):
        part = file[begin : begin + len(code)]
        part.copy_(code)
        assert outcome(part, len(offsets), 2**31) == offsets.tolist()
        assert "bytes" in outcome(part[:-1], len(offsets), 2**31)


@given(st.data())
def test_random_bytes_give_an_error_or_a_list(data):
    code = as_code(data.draw(st.binary(max_size=400)))
    if len(code) and data.draw(st.booleans()):  # one that gets further than its first byte
        code[0] %= 31
    count = data.draw(st.one_of(st.integers(0, 9 * len(code)), st.integers(0, 2**40)))
    limit = data.draw(st.one_of(st.integers(0, 2**31), st.just(min(count, 2**31)), st.just(2**31)))
    assert_valid_or_refused(code, count, limit)


def test_many_random_changes_give_an_error_or_a_list():
    """Bytes written over, taken out and put in, within lists of several blocks."""
    rng = np.random.default_rng(4)
    sources = [random_offsets(0.2, 300), random_offsets(0.0001, 90), clustered_offsets(300)]
    for number in range(300):
        offsets = sources[number % 3]
        code = encode_gaps(offsets).numpy()
        at = int(rng.integers(len(code)))
        new = rng.integers(0, 256, rng.integers(0, 4), np.uint8)
        changed = np.concatenate([code[:at], new, code[at + rng.integers(0, 4) :]])
        assert_valid_or_refused(torch.from_numpy(changed), len(offsets), int(rng.choice([2**31, offsets[-1] + 1])))


def test_an_absurd_count_takes_no_memory(monkeypatch):
    """Nothing is allocated for offsets that the bytes could not hold."""

    def fail(*_, **__):
        raise AssertionError("allocated")

    monkeypatch.setattr(torch, "empty", fail)
    for backend in BACKENDS:
        with pytest.raises(ValueError, match=r"^gaps: expected 301989888 bytes or more"):
            decode_gaps(as_code([0] * 1000), 2**31, 2**31, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_list_takes_no_more_than_the_bytes_allow(backend):
    """The densest code there is: 64 offsets in 9 bytes."""
    count = BLOCK * 2000
    code = coded(torch.arange(count, dtype=torch.int32))
    assert len(code) == 9 * count // BLOCK
    assert torch.equal(decode_gaps(code, count, count, backend=backend), torch.arange(count, dtype=torch.int32))
    with pytest.raises(ValueError, match=rf"^gaps: expected {len(code) + 2} bytes or more for {count + 1} offsets"):
        decode_gaps(code, count + 1, 2**31, backend=backend)
