"""Delta files: made by another writer they load; damaged or hostile ones give one clear error."""

import hashlib
import json
import random
import re
import struct

import pytest
import torch
from deltatests import trained
from safetensors import safe_open
from safetensors.torch import load_file, save
from selective_peft import DeltaError, SparseDelta
from selective_peft.delta_file import FILE

from selective_kernels.testing import assert_bitwise_equal

FLIPS = 1000
ENCODINGS = pytest.mark.parametrize("compact", [False, True], ids=["indices", "gaps"])
ZEROS = b"0" * 64


@pytest.fixture(scope="module")
def delta():
    _, tuned, optimizer = trained(torch.bfloat16)
    return SparseDelta.from_optimizer(optimizer, tuned, base_model="someone/base")


def written(delta, folder, compact=False):
    delta.save(folder, compact=compact)
    return folder / FILE


def parts(path):
    with safe_open(path, "pt") as file:
        return load_file(path), dict(file.metadata())


def write(path, tensors, metadata, checksum=None):
    """As docs/delta-format.md says, by the library's own writer."""
    data = save(tensors, {**metadata, "checksum": ZEROS.decode()})
    checksum = checksum or hashlib.sha256(data).hexdigest()
    place = b'"checksum":"' + ZEROS + b'"'
    assert data.count(place) == 1
    path.write_bytes(data.replace(place, b'"checksum":"' + checksum.encode() + b'"'))
    return path


def described(metadata, name, **changed):
    """Metadata in which the description of a tensor is another."""
    tensors = json.loads(metadata["tensors"])
    tensors[name] = {**tensors[name], **changed}
    return {**metadata, "tensors": json.dumps(tensors)}


def refused(path, message=None):
    with pytest.raises(DeltaError, match=message) as caught:
        SparseDelta.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@ENCODINGS
def test_another_writer_s_file_is_a_delta(delta, tmp_path, compact):
    """The format is what the page says, not what one writer does: order and spacing are free."""
    tensors, metadata = parts(written(delta, tmp_path / "a", compact))
    again = SparseDelta.load(write(tmp_path / "b.safetensors", tensors, metadata))
    assert list(again.changes) == sorted(delta.changes)
    for name, change in delta.changes.items():
        other = again.changes[name]
        assert (other.shape, other.dtype, other.digest) == (change.shape, change.dtype, change.digest)
        assert_bitwise_equal(other.values, change.values)
        assert_bitwise_equal(other.originals, change.originals)
        assert (other.indices is None) == (change.indices is None)
        if other.indices is not None:
            assert torch.equal(other.indices, change.indices)
    assert again.about == delta.about


def test_what_the_page_says_of_names_and_dtypes(delta, tmp_path):
    tensors, metadata = parts(written(delta, tmp_path))
    change = delta.changes["0.weight"]
    assert tensors["0.weight.indices"].dtype == torch.int32
    assert torch.equal(tensors["0.weight.indices"], change.indices)
    assert_bitwise_equal(tensors["0.weight.values"], change.values)
    assert_bitwise_equal(tensors["0.weight.original"], change.originals)
    assert_bitwise_equal(tensors["4.weight"], delta.changes["4.weight"].values)
    assert (metadata["format"], metadata["version"], metadata["encoding"]) == ("selective-delta", "1", "indices")
    found = json.loads(metadata["tensors"])["0.weight"]
    assert found == {
        "shape": [50, 40],
        "dtype": "bfloat16",
        "entries": len(change.indices),
        "digest": change.digest,
        "tied": [],
    }
    lines = [f"{name} bfloat16 {list(each.shape)} {each.digest}\n" for name, each in sorted(delta.changes.items())]
    assert metadata["fingerprint"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    config = json.loads((tmp_path / "selective_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/base"
    card = (tmp_path / "README.md").read_text()
    assert re.match(r"---\nlibrary_name: selective-kernels\nbase_model: someone/base\n", card)


@ENCODINGS
def test_equal_deltas_give_equal_files(delta, tmp_path, compact):
    first, second = (written(delta, tmp_path / name, compact) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    again = written(SparseDelta.load(first), tmp_path / "c", compact)
    assert again.read_bytes() == first.read_bytes()


@ENCODINGS
def test_truncated_files_are_refused(delta, tmp_path, compact):
    data = written(delta, tmp_path, compact).read_bytes()
    path = tmp_path / "short.safetensors"
    for i in range(64):
        path.write_bytes(data[: i * len(data) // 64])
        refused(path)
    path.write_bytes(data + b"\0")
    refused(path)


@ENCODINGS
def test_flipped_bits_and_bytes_are_refused(delta, tmp_path, compact):
    data = written(delta, tmp_path, compact).read_bytes()
    path, rng = tmp_path / "flipped.safetensors", random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    for i in range(FLIPS):
        spoilt = bytearray(data)
        at = rng.randrange(header if i % 2 else len(data))  # half of them in the header
        spoilt[at] ^= 1 << rng.randrange(8) if i % 4 < 2 else rng.randrange(1, 256)
        path.write_bytes(spoilt)
        refused(path)


def test_other_formats_and_versions_are_refused(delta, tmp_path):
    tensors, metadata = parts(written(delta, tmp_path))
    path = tmp_path / "other.safetensors"
    refused(write(path, tensors, {**metadata, "version": "2"}), "version: expected '1', got '2'")
    refused(write(path, tensors, {**metadata, "format": "pt"}), "format: expected 'selective-delta', got 'pt'")
    refused(write(path, tensors, {**metadata, "encoding": "x"}), "encoding: expected 'indices' or 'gaps', got 'x'")
    refused(write(path, tensors, metadata, "1" * 64), "checksum: expected that of the file, got another")
    for name in ("base_model", "method", "hyperparameters", "fingerprint", "scalars", "tensors", "version"):
        refused(write(path, tensors, {key: value for key, value in metadata.items() if key != name}), name)
    path.write_bytes(save(tensors, {k: v for k, v in metadata.items() if k != "checksum"}))
    refused(path, "checksum: expected one of 64 hexadecimal digits, got None")
    path.write_bytes(save(tensors))
    refused(path, "format: expected 'selective-delta', got None")


def test_tensors_that_do_not_fit_are_refused(delta, tmp_path):
    """Each is a well-formed file with a right checksum."""
    tensors, metadata = parts(written(delta, tmp_path))
    name, path = "0.weight", tmp_path / "hostile.safetensors"
    indices, values = tensors[f"{name}.indices"], tensors[f"{name}.values"]

    def with_indices(made):
        return write(path, {**tensors, f"{name}.indices": made}, metadata)

    def edited(at, value):
        made = indices.clone()
        made[at] = value
        return with_indices(made)

    refused(edited(-1, 2000), r"0\.weight: indices: expected positions in \[0, 2000\)")
    refused(edited(0, -1), r"indices: expected positions in \[0, 2000\), got -1")
    refused(edited(-1, 2**31 - 1), "indices: expected positions")
    refused(edited(1, int(indices[0])), "indices: expected ascending positions, each once")
    refused(with_indices(indices.flip(0)), "indices: expected ascending positions, each once")
    refused(with_indices(indices.long()), r"0\.weight\.indices: expected I32")
    refused(with_indices(indices[:-1].clone()), r"0\.weight\.indices: expected I32 \[")
    refused(with_indices(indices.view(1, -1)), r"0\.weight\.indices: expected I32 \[")
    for bad in (float("nan"), float("inf"), float("-inf")):
        for kind in ("values", "original"):
            spoilt = tensors[f"{name}.{kind}"].clone()
            spoilt[3] = bad
            refused(write(path, {**tensors, f"{name}.{kind}": spoilt}, metadata), "expected finite values")
        spoilt = tensors["4.weight"].clone()
        spoilt[0, 0] = bad
        refused(write(path, {**tensors, "4.weight": spoilt}, metadata), r"4\.weight: values: expected finite values")
    refused(write(path, {**tensors, f"{name}.values": values.float()}, metadata), "expected BF16")
    refused(write(path, {**tensors, f"{name}.values": values[:-1].clone()}, metadata), "expected BF16")
    refused(write(path, {**tensors, "4.weight": tensors["4.weight"].view(-1)}, metadata), r"4\.weight: expected BF16")
    refused(write(path, {**tensors, "more": values.clone()}, metadata), "that the metadata name, got 'more'")
    for key in (f"{name}.indices", f"{name}.values", "4.weight"):
        fewer = {each: tensor for each, tensor in tensors.items() if each != key}
        refused(write(path, fewer, metadata), f"expected a tensor '{re.escape(key)}', there is none")


DESCRIPTIONS = {
    "shape": [[50, 39], [2000, 0], [-1, 40], [2**31], [2**40, 2**40], "x", [50, 40.0], [True, 40], [1] * 65, None],
    "dtype": ["float32", "float64", "int8", None, 3],
    "entries": [0, -1, 10**12, "7", 1.5, True, None],
    "digest": ["", "x" * 32, "A" * 32, None, 5],
    "tied": ["a", ["a", "a"], ["a", 1], 0, {}],
}


@ENCODINGS
@pytest.mark.parametrize("field", sorted(DESCRIPTIONS))
def test_descriptions_that_do_not_fit_are_refused(delta, tmp_path, compact, field):
    tensors, metadata = parts(written(delta, tmp_path, compact))
    for value in DESCRIPTIONS[field]:
        refused(write(tmp_path / "hostile.safetensors", tensors, described(metadata, "0.weight", **{field: value})))
    tensors_json = json.loads(metadata["tensors"])
    del tensors_json["0.weight"][field]
    refused(
        write(tmp_path / "a.safetensors", tensors, {**metadata, "tensors": json.dumps(tensors_json)}), "an object of"
    )


NO_JSON = ["{", "[]", "7", '{"a":1,"a":2}', '{"a":NaN}', "[" * 100_000, '{"a":' * 100_000]


@pytest.mark.parametrize("item", ["tensors", "hyperparameters", "model_config"])
@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: text[:14])
def test_hostile_json_is_refused(delta, tmp_path, item, text):
    tensors, metadata = parts(written(delta, tmp_path))
    refused(write(tmp_path / "hostile.safetensors", tensors, {**metadata, item: text}), "expected")


def raw_file(header, data=b""):
    return struct.pack("<Q", len(header)) + header + data


BOMBS = {
    "nothing": b"",
    "a length only": struct.pack("<Q", 2),
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "the longest header": struct.pack("<Q", 2**64 - 1) + b"{}",
    "no JSON": raw_file(b"x" * 100),
    "deep JSON": raw_file(b'{"a":' * 50_000),
    "a list": raw_file(b"[]"),
    "metadata that are no strings": raw_file(b'{"__metadata__":{"format":1}}'),
    "a tensor beyond the end": raw_file(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"\0" * 8),
    "a tensor of other size": raw_file(b'{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}', b"\0" * 16),
    "overflowing shape": raw_file(
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'
    ),
    "overlapping tensors": raw_file(
        b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}}',
        b"\0" * 12,
    ),
    "a hole": raw_file(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}', b"\0" * 8),
    "a name twice": raw_file(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "an unknown dtype": raw_file(b'{"a":{"dtype":"Q9","shape":[4],"data_offsets":[0,4]}}', b"\0" * 4),
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.",
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 1\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(BOMBS))
def test_header_bombs_are_refused(tmp_path, kind):
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(BOMBS[kind])
    refused(path)


def test_missing_files_are_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        SparseDelta.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        SparseDelta.load(tmp_path / "none")
