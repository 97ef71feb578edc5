"""Files of torch.save read as data: nothing in them runs, whatever they say."""

import io
import os
import pickle
import random
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from selective_optimizers.load_store import SelectivePeftSummary
from selective_peft import DeltaError, torch_archive
from selective_peft.torch_archive import Object, StoredTensor, TorchArchive

from selective_kernels.testing import assert_bitwise_equal

CLASS = "selective_optimizers.load_store SelectivePeftSummary"


def content(path):
    with TorchArchive(path, CLASS) as archive:
        return archive.content


def written(path, value):
    torch.save(value, path)
    return path


def with_program(path, program, **records):
    """An archive with this pickle in it, and the bytes of a tensor of four float32."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": program, "data/0": bytes(16), "byteorder": b"little", **records}.items():
            archive.writestr(f"x/{name}", data)
    return path


def test_tensors_and_plain_data(tmp_path):
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5, 2).bfloat16().t(),
        "c": torch.arange(9).view(3, 3)[1:, 1:],
        "d": torch.tensor(7),
        "e": torch.randn(0, 3),
        "f": torch.randn(4).half(),
    }
    value = {**tensors, "plain": [1, 300, 70_000, -5, 2**40, True, None, "text", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}
    value |= {"size": torch.Size([2, 3]), "ordered": OrderedDict(), "object": SelectivePeftSummary([], [], [], [], 3)}
    with TorchArchive(written(tmp_path / "f", value), CLASS) as archive:
        found = archive.content
        assert found["plain"] == value["plain"]
        assert (found["size"], found["ordered"]) == ((2, 3), {})
        assert isinstance(found["object"], Object)
        assert found["object"].state["budget_used"] == 3
        for name, tensor in tensors.items():
            assert isinstance(found[name], StoredTensor)
            read = archive.read(found[name])
            assert read.is_contiguous()
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(read, tensor)
        assert_bitwise_equal(archive.read(found["a"]), tensors["a"])


class Runs:
    """What pickle would call when it reads this."""

    def __init__(self, function, *given):
        self.call = (function, given)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_a_pickle_is_refused_and_not_run(protocol, tmp_path):
    mark = tmp_path / "ran"
    for call in (
        Runs(os.system, f"touch {mark}"),
        Runs(eval, f"open({str(mark)!r}, 'w')"),
        Runs(getattr, Path(mark), "touch"),
        Runs(torch.load, str(mark)),
    ):
        program = pickle.dumps([call], protocol=protocol)
        path = with_program(tmp_path / "hostile", program)
        with pytest.raises(DeltaError, match="expected plain data and tensors, got a pickle of something else"):
            content(path)
        assert not mark.exists()
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {mark}"), protocol=protocol))
    assert mark.exists()  # so they would have


@pytest.mark.parametrize(
    "value",
    [
        {1, 2}, 1.5, b"bytes", {1: 2}, torch.nn.Parameter(torch.ones(2)), torch.nn.Linear(2, 2),
        torch.ones(2, requires_grad=True),
        torch.ones(2, dtype=torch.complex64), torch.ones(2).to_sparse(), Path("x"), OrderedDict(a=1).items,
    ],
    ids=str,
)  # fmt: skip
def test_other_values_are_refused(value, tmp_path):
    with pytest.raises(DeltaError, match="expected plain data and tensors"):
        content(written(tmp_path / "f", [value]))


TENSOR = (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
)
TENSOR += b"X\x03\x00\x00\x00cpu%btQ%b%b%b\x89ccollections\nOrderedDict\n)RtR."  # length, offset, shape, stride


ONES = b"(" + b"K\x01" * 65 + b"t"  # one axis more than torch knows
EMPTY = b"\x8a\x08" + bytes(7) + b"\x40" + b"q\x00h\x00K\x00\x87"  # [2^62, 2^62, 0]: torch computes strides


@pytest.mark.parametrize(
    ("length", "offset", "shape", "stride", "message"),
    [
        (b"K\x04", b"K\x00", b"K\x04\x85", b"K\x01\x85", None),
        (b"K\x04", b"K\x01", b"K\x04\x85", b"K\x01\x85", "within their bytes"),
        (b"K\x04", b"K\x00", b"K\x04\x85", b"K\x02\x85", "within their bytes"),
        (b"K\x05", b"K\x00", b"K\x05\x85", b"K\x01\x85", "within their bytes"),
        (b"K\x03", b"K\x00", b"K\x03\x85", b"K\x01\x85", "within their bytes"),
        (b"K\x04", b"K\x00", b"J\xff\xff\xff\x7f\x85", b"K\x00\x85", "within their bytes"),
        (b"K\x04", b"J\xff\xff\xff\xff", b"K\x04\x85", b"K\x01\x85", "a size that is none"),
        (b"K\x04", b"K\x00", b"J\xff\xff\xff\xff\x85", b"K\x01\x85", "a size that is none"),
        (b"K\x04", b"K\x00", b"K\x02K\x02\x86", b"K\x01\x85", "a tensor of another kind"),
        (b"N", b"K\x00", b"K\x04\x85", b"K\x01\x85", "a size that is none"),
        (b"K\x04", b"K\x00", ONES, ONES, "a tensor of another kind"),
        (b"K\x04", b"K\x00", EMPTY, EMPTY, "a tensor of another kind"),
        (b"K\x04", b"K\x00", b"\x8a\x09" + bytes(8) + b"\x01\x85", b"K\x01\x85", "a size that is none"),
    ],
)
def test_tensors_that_reach_beyond_their_bytes(length, offset, shape, stride, message, tmp_path):
    path = with_program(tmp_path / "f", TENSOR % (length, offset, shape, stride))
    if message is None:
        with TorchArchive(path, CLASS) as archive:
            assert archive.read(archive.content).tolist() == [0.0] * 4
        return
    with pytest.raises(DeltaError, match=message), TorchArchive(path, CLASS) as archive:
        archive.read(archive.content)


def test_lists_in_lists_without_end(tmp_path):
    """A few bytes that describe 2^60 values, and a list in itself; read without being unfolded, and refused."""
    doubled = b"\x80\x02]q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60)) + b"."
    assert isinstance(content(with_program(tmp_path / "f", doubled)), tuple)
    with pytest.raises(DeltaError, match="something else"):
        content(with_program(tmp_path / "h", doubled[:-1] + b"R."))
    own = b"\x80\x02]q\x00h\x00a."
    assert isinstance(content(with_program(tmp_path / "g", own)), list)


def test_marks_in_a_large_program(tmp_path):
    """Time grows with the program's length, not with its square: 20 s, if each mark were searched for."""
    program = b"\x80\x02](" + b"N" * 20_000 + b"(t" * 20_000 + b"e."
    began = time.perf_counter()
    assert len(content(with_program(tmp_path / "f", program))) == 40_000
    assert time.perf_counter() - began < 5


OBJECT = b"cselective_optimizers.load_store\nSelectivePeftSummary\n)\x81"


@pytest.mark.parametrize(
    "program",
    [
        OBJECT + b"}b}b.",
        (TENSOR % (b"K\x04", b"K\x00", b")", b")")).replace(b"\x000", b"\x00/"),
        b"",
        b".",
        b"\x80\x02",
        b"K\x01",
        b"h\x00.",
        b"t.",
        b"N(.",
        b"NNb.",
        b"}KKs.",
        b"R.",
    ],
)
def test_broken_programs(program, tmp_path):
    with pytest.raises(DeltaError, match="something else"):
        content(with_program(tmp_path / "f", program))


def test_other_archives(tmp_path):
    good = pickle.dumps([1], protocol=2)
    (tmp_path / "text").write_bytes(b"text")
    with pytest.raises(DeltaError, match=r"expected a file of torch\.save, got another"):
        content(tmp_path / "text")
    torch.save([1], tmp_path / "old", _use_new_zipfile_serialization=False)
    with pytest.raises(DeltaError, match=r"expected a file of torch\.save, got another"):
        content(tmp_path / "old")
    with pytest.raises(DeltaError, match="expected little endian numbers"):
        content(with_program(tmp_path / "c", good, byteorder=b"big"))
    with zipfile.ZipFile(tmp_path / "d", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", good)
    with pytest.raises(DeltaError, match="expected plain records"):
        content(tmp_path / "d")
    with zipfile.ZipFile(tmp_path / "twice", "w") as archive:
        archive.writestr("x/data.pkl", good)
        archive.writestr("y/data.pkl", pickle.dumps([2], protocol=2))
    with pytest.raises(DeltaError, match=r"expected plain records, each once, got 'data\.pkl'"):
        content(tmp_path / "twice")
    sealed = bytearray(with_program(tmp_path / "sealed", good).read_bytes())
    sealed[sealed.index(b"PK\x01\x02") + 8] |= 1  # encrypted, says the directory
    (tmp_path / "sealed").write_bytes(sealed)
    with pytest.raises(DeltaError, match="expected plain records"):
        content(tmp_path / "sealed")
    with zipfile.ZipFile(tmp_path / "e", "w") as archive:
        archive.writestr("x/other", good)
    with pytest.raises(DeltaError, match=r"it has no data\.pkl"):
        content(tmp_path / "e")


def test_a_program_that_is_too_large(tmp_path, monkeypatch):
    path = with_program(tmp_path / "f", pickle.dumps([1], protocol=2))
    assert content(path) == [1]
    monkeypatch.setattr(torch_archive, "LARGEST_PROGRAM", 3)
    with pytest.raises(DeltaError, match=r"it has no data\.pkl of a usual size"):
        content(path)


def test_any_damage_is_found_or_harmless(tmp_path):
    """Flipped, cut and doubled bytes: a clear error, or the same kind of values; nothing else is ever raised."""
    data = written(
        tmp_path / "f", SelectivePeftSummary([torch.randn(5)], [None], [torch.Size([5])], [], 5)
    ).read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(500):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(changed))
            kind = rng.randrange(3)
            if kind == 0:
                changed[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del changed[at : at + rng.randint(1, 9)]
            else:
                changed[at:at] = changed[at : at + rng.randint(1, 9)]
        (tmp_path / "g").write_bytes(changed)
        try:
            with TorchArchive(tmp_path / "g", CLASS) as archive:
                assert isinstance(archive.content, Object)
        except DeltaError:
            refused += 1
    assert refused > 300


def test_damaged_programs_in_sound_archives(tmp_path):
    """As above, with checksums that are right: only the machine stands between the file and the caller."""
    torch.save(SelectivePeftSummary([torch.randn(5)], [None], [torch.Size([5])], [{}], 5), buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as archive:
        program = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    rng, refused = random.Random(1), 0
    for _ in range(500):
        changed = bytearray(program)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            content(with_program(tmp_path / "g", bytes(changed)))
        except DeltaError:
            refused += 1
    assert 300 < refused < 500
