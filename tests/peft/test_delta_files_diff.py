"""Differences of checkpoint folders: what no delta holds is refused, what one of them lacks is said."""

import pytest
import torch
from checkpoints import applied, assert_same_tensors, base_tensors, tensors_in, tuned_tensors, write
from selective_peft import SparseDelta
from selective_peft.differing import ALONE, PIECE
from selective_peft.errors import DeltaError
from selective_peft.patch_files import diff_files
from selective_peft.rawbytes import digest


def test_differences_that_no_delta_holds(tmp_path):
    base = base_tensors()
    folder = write(tmp_path / "base", base)

    def differs(name, tensor, message):
        tuned = {k: v for k, v in {**base, name: tensor}.items() if v is not None}
        other = write(tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}", tuned)
        with pytest.raises(DeltaError, match=message):
            diff_files(folder, other)
        return other

    differs("steps", torch.tensor([3, 5]), "steps: tuned: expected equal tensors unless .* got different ones of I64")
    differs("counter", torch.tensor([3]), "counter: tuned: .* got another one of I64")
    differs("embed.weight", base["embed.weight"].bfloat16(), r"tuned: expected F32 \[20, 12\], got BF16 \[20, 12\]")
    differs("embed.weight", base["embed.weight"][1:].clone(), r"tuned: expected F32 \[20, 12\], got F32 \[19, 12\]")
    differs("embed.weight", base["embed.weight"] * float("inf"), "embed.weight: values: expected finite")
    lost = differs("embed.weight", None, "tuned: expected all tensors of the base, embed.weight is missing")
    assert not diff_files(folder, lost, allow_missing=True).changes
    with pytest.raises(ValueError, match=r"whole_above: expected a share in \[0, 1\], got 2"):
        diff_files(folder, lost, whole_above=2)
    strange = write(tmp_path / "strange", {"x.y": torch.ones(3)})
    with pytest.raises(DeltaError, match="expected tensors of the base, there is none of any of its names"):
        diff_files(folder, strange)


def test_another_head_instead(tmp_path):
    """A base with a head that the tuned model lacks, and the other way round."""
    body = base_tensors("bert.")
    folder = write(tmp_path / "base", {**body, "cls.weight": torch.ones(2, 3)})
    tuned = {**tuned_tensors(body), "classifier.weight": torch.full((5, 2), 0.5)}
    delta = diff_files(folder, write(tmp_path / "tuned", tuned), allow_missing=True)
    assert delta.changes["classifier.weight"].is_new
    assert_same_tensors(tensors_in(applied(folder, delta)), {**tuned, "cls.weight": torch.ones(2, 3)})


@pytest.mark.parametrize("where", ["memory", "files"])
def test_places_at_the_ends_of_pieces(tmp_path, where):
    """More scalars than one piece has, different at its ends and at those of the smaller ones within."""
    base = {"a": torch.zeros(PIECE + 3 * ALONE + 5)}
    places = [0, ALONE - 1, ALONE, 2 * ALONE, PIECE - 1, PIECE, PIECE + ALONE - 1, PIECE + ALONE, len(base["a"]) - 1]
    tuned = {"a": base["a"].clone()}
    tuned["a"][places] = -0.0
    if where == "memory":
        delta = SparseDelta.from_models(base, tuned)
    else:
        delta = diff_files(write(tmp_path / "base", base), write(tmp_path / "tuned", tuned))
    change = delta.changes["a"]
    assert change.indices.tolist() == places
    assert change.values.view(torch.int32).tolist() == [-(2**31)] * len(places)
    assert change.originals.view(torch.int32).tolist() == [0] * len(places)
    assert change.digest == digest(base["a"])
