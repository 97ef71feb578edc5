"""Which stored tensor a delta's name means: prefixes, and old names of layer norms."""

import json

import pytest
import torch
from checkpoints import applied, assert_same_tensors, base_tensors, refused, renamed, tensors_in, tuned_tensors, write
from deltatests import changed, random_tensor
from selective_peft import SparseDelta
from selective_peft.patch_files import apply_files, diff_files, merge_files, revert_files


@pytest.mark.parametrize(
    ("stored", "named"),
    [("", "bert."), ("bert.", ""), ("", "model.text."), ("module.", ""), ("a.", "a."), ("", "")],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_one_prefix_more_or_less(tmp_path, stored, named, shards):
    """Applied, tensors keep the stored names; merged, they get the delta's; back, all is as it was."""
    base = base_tensors()
    tuned = tuned_tensors(base)
    delta = SparseDelta.from_models(renamed(base, put=named), renamed(tuned, put=named))
    folder = write(tmp_path / "base", renamed(base, put=stored), shards)
    out = applied(folder, delta)
    assert_same_tensors(tensors_in(out), renamed(tuned, put=stored))
    revert_files(out, delta, tmp_path / "back")
    assert_same_tensors(tensors_in(tmp_path / "back"), tensors_in(folder))
    merge_files(folder, delta, tmp_path / "merged")
    assert_same_tensors(tensors_in(tmp_path / "merged"), renamed(tuned, put=named))
    other = write(tmp_path / "other", renamed(tuned, put=named))
    assert diff_files(folder, other).fingerprint == delta.fingerprint


def test_a_new_tensor_within_the_prefix(tmp_path):
    """It gets the names that its neighbours have."""
    base = base_tensors()
    more = {"pooler.weight": torch.ones(2, 2)}
    delta = SparseDelta.from_models(renamed(base, put="m."), renamed({**tuned_tensors(base), **more}, put="m."))
    folder = write(tmp_path / "base", base)
    assert "pooler.weight" in tensors_in(applied(folder, delta))
    merge_files(folder, delta, tmp_path / "merged")
    assert "m.pooler.weight" in tensors_in(tmp_path / "merged")


def test_a_head_beside_a_model_without_its_prefix(tmp_path):
    """As `apply` leaves it when it adds a head to a bare model: another delta changes both, merged or not."""
    base, head = base_tensors(), {"head.weight": random_tensor((4, 4), torch.float32, 3)}
    tuned, other = tuned_tensors(base), tuned_tensors(head, share=0.3)
    delta = SparseDelta.from_models({**renamed(base, put="m."), **head}, {**renamed(tuned, put="m."), **other})
    folder = write(tmp_path / "base", {**base, **head}, 2)
    assert_same_tensors(tensors_in(applied(folder, delta)), {**tuned, **other})
    merge_files(folder, delta, tmp_path / "merged")
    assert_same_tensors(tensors_in(tmp_path / "merged"), {**renamed(tuned, put="m."), **other})


def test_two_possible_prefixes_are_refused(tmp_path):
    tensor = random_tensor((5, 5), torch.float32, 0)
    folder = write(tmp_path / "base", {"encoder.a.weight": tensor, "decoder.a.weight": tensor + 1})
    delta = SparseDelta.from_models({"a.weight": tensor}, {"a.weight": changed(tensor, 0.2, 1)})
    refused(r"one prefix more or less than the delta's, got 'decoder\.' and 'encoder\.'", apply_files, folder, delta)


def test_two_names_that_lead_to_one_tensor_are_refused(tmp_path):
    """Else one of the two changes would be lost."""
    tensor = random_tensor((5, 5), torch.float32, 0)
    folder = write(tmp_path / "base", {"a.weight": tensor})
    base = {"bert.a.weight": tensor, "a.weight": tensor.clone()}
    delta = SparseDelta.from_models(base, {name: changed(tensor, 0.2, i) for i, name in enumerate(base)})
    refused("a.weight: expected a tensor of its own, got that of bert.a.weight", apply_files, folder, delta)


def test_a_guess_is_checked_by_fingerprint(tmp_path):
    """The only prefix that fits leads to another tensor."""
    tensor = random_tensor((5, 5), torch.float32, 0)
    folder = write(tmp_path / "base", {"other.a.weight": tensor + 1})
    delta = SparseDelta.from_models({"a.weight": tensor}, {"a.weight": changed(tensor, 0.2, 1)})
    refused("a.weight: expected the base that the delta was made for", apply_files, folder, delta)


def test_what_is_missing_is_named(tmp_path):
    base = base_tensors()
    delta = SparseDelta.from_models(base, tuned_tensors(base, share=0.3))
    folder = write(tmp_path / "base", {k: v for k, v in base.items() if not k.startswith("layer.1.")})
    for operation in (apply_files, merge_files, revert_files):
        refused(r"expected a tensor 'layer\.1\.weight', there is none \(2 are missing\)", operation, folder, delta)


def test_a_whole_tensor_of_a_stored_layer_is_not_added(tmp_path):
    """It was in the base, in another form; one that the base lacked is."""
    base = base_tensors()
    adapter = {"layer.0.adapter.weight": torch.ones(4)}
    folder = write(tmp_path / "base", base)
    delta = SparseDelta.from_models({"layer.0.adapter.weight": torch.zeros(4)}, adapter)
    refused("expected a tensor 'layer.0.adapter.weight', there is none", apply_files, folder, delta)
    out = applied(folder, SparseDelta.from_models({}, adapter))
    assert_same_tensors(tensors_in(out), {**base, **adapter})


def test_a_whole_tensor_stored_under_another_name_is_not_added(tmp_path):
    base = base_tensors()
    other = {"words.weight": base["embed.weight"]}
    delta = SparseDelta.from_models(other, {"words.weight": base["embed.weight"] + 1}, whole_above=0.0)
    folder = write(tmp_path / "base", base, config={"tie_word_embeddings": False})
    refused("'words.weight', got the same one as 'embed.weight'", apply_files, folder, delta)


def test_another_dtype_or_shape(tmp_path):
    base = base_tensors()
    delta = SparseDelta.from_models(base, tuned_tensors(base))
    for name, bad, message in (
        ("embed.weight", torch.bfloat16, r"F32 \[20, 12\] as in the delta, got BF16 \[20, 12\]; load the base in"),
        ("embed.weight", (12, 20), r"F32 \[20, 12\] as in the delta, got F32 \[12, 20\]$"),
        ("layer.1.weight", torch.float16, r"BF16 \[12, 12\] as in the delta, got F16 \[12, 12\]; load the base in"),
        ("layer.1.weight", (16, 9), r"\[12, 12\] as in the delta, got \[16, 9\]$"),
    ):
        other = base[name].to(bad) if isinstance(bad, torch.dtype) else base[name].reshape(bad)
        folder = write(tmp_path / f"{name} {bad}", {**base, name: other})
        for check in (True, False):
            refused(f"{name}: expected {message}", apply_files, folder, delta, check=check)


# ---------------------------------------------------------------------- contents


def test_another_base(tmp_path):
    base = base_tensors()
    delta = SparseDelta.from_models(base, tuned_tensors(base))
    other = {**base, "layer.2.weight": base["layer.2.weight"].clone()}
    free = sorted(set(range(144)) - set(delta.changes["layer.2.weight"].indices.tolist()))
    other["layer.2.weight"].view(-1)[free[0]] += 1
    folder = write(tmp_path / "base", other, 2)
    for operation in (apply_files, merge_files):
        refused("layer.2.weight: expected the base that the delta was made for", operation, folder, delta)
    refused("expected the delta's values at its places, got others: it is not applied", revert_files, folder, delta)


def test_applied_twice_and_undone_twice(tmp_path):
    base = base_tensors()
    delta = SparseDelta.from_models(base, tuned_tensors(base))
    folder = write(tmp_path / "base", base)
    out = applied(folder, delta)
    refused("it is applied already", apply_files, out, delta)
    refused("it is not applied", revert_files, folder, delta)


def test_undone_on_something_else(tmp_path):
    """The delta's values are there, but the rest is another model's."""
    base = base_tensors()
    tuned = tuned_tensors(base)
    delta = SparseDelta.from_models(base, tuned)
    free = sorted(set(range(240)) - set(delta.changes["embed.weight"].indices.tolist()))
    tuned["embed.weight"].view(-1)[free[-1]] += 1
    folder = write(tmp_path / "tuned", tuned)
    refused("embed.weight: expected the base besides the delta's values", revert_files, folder, delta)


def test_undone_without_originals(tmp_path):
    base = base_tensors()
    delta = SparseDelta.from_models(base, tuned_tensors(base))
    delta.save(tmp_path / "delta", originals=False)
    out = applied(write(tmp_path / "base", base), delta)
    refused("they were not kept", revert_files, out, SparseDelta.load(tmp_path / "delta"))


# ---------------------------------------------------------------------- old names


def test_old_names_of_layer_norms(tmp_path):
    """transformers reads LayerNorm.gamma as LayerNorm.weight, and so does a delta; merged, it has the new name."""
    base = {
        "bert.encoder.layer.0.LayerNorm.weight": random_tensor((9,), torch.float32, 1),
        "bert.encoder.layer.0.LayerNorm.bias": random_tensor((9,), torch.float32, 2),
    }
    tuned = {name: changed(tensor, 0.3, 3) for name, tensor in base.items()}
    delta = SparseDelta.from_models(base, tuned)

    def old(tensors):
        ends = {".weight": ".gamma", ".bias": ".beta"}
        return {name.replace(end, ends[end]): tensors[name] for name in tensors for end in ends if name.endswith(end)}

    folder = write(tmp_path / "base", old(base), config={})
    out = applied(folder, delta)
    assert_same_tensors(tensors_in(out), old(tuned))
    revert_files(out, delta, tmp_path / "back")
    assert_same_tensors(tensors_in(tmp_path / "back"), old(base))
    merge_files(folder, delta, tmp_path / "merged")
    assert_same_tensors(tensors_in(tmp_path / "merged"), tuned)
    assert diff_files(folder, tmp_path / "merged").fingerprint == delta.fingerprint
    both = write(tmp_path / "both", {**old(base), **base})
    refused("LayerNorm.bias once, got it as .*beta, too", apply_files, both, delta)


def test_the_config_of_a_merge_stays_without_a_better_one(tmp_path):
    base = base_tensors()
    folder = write(tmp_path / "base", base, 2, {"model_type": "tiny"})
    merge_files(folder, SparseDelta.from_models(base, tuned_tensors(base)), tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == {"model_type": "tiny"}
