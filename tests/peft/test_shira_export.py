"""Deltas as SHiRA adapters: PEFT loads them and merges the tuned model, bit for bit."""

import copy
import warnings

import pytest
import torch
from families import batch, tiny
from safetensors.torch import load_file, save_file
from selective_peft import DeltaError, SparseDelta
from selective_peft.errors import InputError
from selective_peft.exchange import export_shira
from shiratests import assert_same_state, config_of, merged, model_and_delta, tuned_copy

peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[test]'")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PREFIX = "base_model.model."
MATRICES = {"query.weight": 20, "output.dense.weight": 30}
# Family -> changed scalars by ending of the name; which modules an adapter has to store whole (endings, too).
EVERYWHERE = {
    "bert": (
        {**MATRICES, "word_embeddings.weight": 7, "LayerNorm.bias": 2, "key.bias": 3, "classifier.weight": 48},
        {"word_embeddings", "LayerNorm", "key", "classifier"},
    ),
    "llama": (
        {"q_proj.weight": 20, "up_proj.weight": 33, "embed_tokens.weight": 7, "post_attention_layernorm.weight": 2},
        {"embed_tokens", "post_attention_layernorm"},
    ),
    "t5": ({"q.weight": 20, "wi.weight": 33, "shared.weight": 4}, {"shared", "embed_tokens", "lm_head"}),
    "deberta-v3": ({"query_proj.weight": 30, "rel_embeddings.weight": 5}, {"rel_embeddings"}),
}


def quiet_export(*given, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's and torch's own
        return export_shira(*given, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", EVERYWHERE)
def test_what_peft_merges_is_the_tuned_model(family, dtype, tmp_path):
    """Zero differing bits, with -0 in the weights; what SHiRA cannot hold is stored whole, the rest is not."""
    counts, whole = EVERYWHERE[family]
    base, tuned, delta = model_and_delta(family, counts, dtype)
    before = copy.deepcopy(base.state_dict())
    done = quiet_export(delta, base, tmp_path / "a")
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert_same_state(merged(base, tmp_path / "a"), tuned)
    assert {name.rpartition(".")[2] for name, why in done.whole.items() if "no room" not in why} == whole
    for name, count in done.scalars.items():
        assert count == len(delta.changes[f"{name}.weight"].indices)
    stored, places = load_file(tmp_path / "a" / "adapter_model.safetensors"), 0
    for name in done.scalars:
        rows, columns = stored[f"{PREFIX}{name}.shira_indices"]
        shape = base.get_submodule(name).weight.shape
        assert len(rows) == done.r * sum(shape)  # as PEFT wants it
        places += len(set((rows * shape[1] + columns).tolist()))
        assert not stored[f"{PREFIX}{name}.shira_weight"].isnan().any()
    assert places == sum(done.scalars.values()) + done.padding  # each once, but for pairs
    total = places + done.pairs
    assert total == sum(len(each) for name, each in stored.items() if name.endswith("shira_weight"))
    assert done.nbytes == (tmp_path / "a" / "adapter_model.safetensors").stat().st_size


def test_it_runs_unmerged_like_the_tuned_model(tmp_path):
    base, tuned, delta = model_and_delta("bert", {**MATRICES, "LayerNorm.weight": 3, "classifier.bias": 1})
    quiet_export(delta, base, tmp_path / "a")
    unmerged = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "a")).eval()
    inputs = batch("bert")
    with torch.no_grad():
        expected, other = tuned(**inputs).logits, base(**inputs).logits
        assert torch.equal(unmerged(**inputs).logits, expected)
    assert not torch.equal(other, expected)


def test_the_configuration(tmp_path):
    base, _, delta = model_and_delta("bert", MATRICES, base_model="org/tiny", base_revision="abc")
    quiet_export(delta, base, tmp_path / "a")
    config = config_of(tmp_path / "a")
    assert (config["peft_type"], config["inference_mode"]) == ("SHIRA", True)
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "abc")
    loaded = peft.PeftConfig.from_pretrained(str(tmp_path / "a"))
    assert loaded.peft_type == peft.PeftType.SHIRA
    assert loaded.auto_mapping["base_model_class"] == "BertForSequenceClassification"
    card = (tmp_path / "a" / "README.md").read_text()
    assert "base_model: org/tiny\n" in card
    assert "library_name: peft\n" in card


def test_r_is_what_makes_the_smallest_file(tmp_path):
    """One crowded matrix would give all others a large r; it is stored whole if that is smaller."""
    base = tiny("bert").eval()
    few = {"query.weight": 20, "key.weight": 20, "value.weight": 20, "intermediate.dense.weight": 30}
    crowded = SparseDelta.from_models(base, tuned_copy(base, {**few, "layer.1.output.dense.weight": 190}))
    done = quiet_export(crowded, base, tmp_path / "a")
    assert done.r == 1
    assert set(done.whole) == {"bert.encoder.layer.1.output.dense"}
    forced = quiet_export(crowded, base, tmp_path / "b", dense=False)
    assert (forced.r, forced.whole) == (5, {})
    assert forced.nbytes > done.nbytes


def test_a_matrix_with_fewer_places_than_r_gives_it(tmp_path):
    """PEFT refuses an r above inputs * outputs / (inputs + outputs): 2 for the small one, where the other needs 5."""
    base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(64, 64))
    tuned = tuned_copy(base, {"0.weight": 3, "1.weight": 600})
    done = quiet_export(SparseDelta.from_models(base, tuned), base, tmp_path / "a")
    assert (done.r, done.whole) == (5, {"0": "no room with r = 5"})
    assert_same_state(merged(base, tmp_path / "a"), tuned)


def test_names_that_end_like_others(tmp_path):
    """PEFT takes what ends like a name in modules_to_save for it, too; and must not do so with sparse ones."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.proj, self.xproj, self.down = (torch.nn.Linear(16, 16) for _ in range(3))

    base = torch.nn.Module()
    base.proj, base.down, base.block = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16), Block()
    tuned = tuned_copy(base, {"proj.weight": 9, "down.weight": 9, "block.down.weight": 4})
    with torch.no_grad():
        tuned.proj.bias += 1
    done = quiet_export(SparseDelta.from_models(base, tuned), base, tmp_path / "a")
    assert set(done.scalars) == {"down", "block.down"}  # proj, block.proj and block.xproj are stored whole
    assert done.whole_scalars == 3 * (16 * 16 + 16)
    assert_same_state(merged(base, tmp_path / "a"), tuned)


def test_subclasses_of_linear_maps_are_stored_whole(tmp_path):
    """Some use their weight without calling themselves, as attention does: unmerged, an adapter would do nothing."""
    base = torch.nn.Sequential(torch.nn.MultiheadAttention(16, 2), torch.nn.Linear(16, 16))
    tuned = tuned_copy(base, {"out_proj.weight": 3, "1.weight": 3})
    done = quiet_export(SparseDelta.from_models(base, tuned), base, tmp_path / "a")
    assert done.whole == {"0.out_proj": "weight of NonDynamicallyQuantizableLinear"}
    assert_same_state(merged(base, tmp_path / "a"), tuned)


def test_names_that_mean_something_in_patterns(tmp_path):
    base = torch.nn.ModuleDict({name: torch.nn.Linear(8, 8) for name in ("a+b", "a(", "a|b", "aab", "é", "[x]")})
    tuned = tuned_copy(base, {"a+b.weight": 3, "a(.weight": 2, "a|b.weight": 1, "é.weight": 2, "[x].weight": 1})
    done = quiet_export(SparseDelta.from_models(base, tuned), base, tmp_path / "a", dense=False)
    assert set(done.scalars) == base.keys() - {"aab"}
    assert_same_state(merged(base, tmp_path / "a"), tuned)


def changed_to(pairs):
    """Two linear maps, and copies with other values in the first one's matrix, and some in the second's."""
    base = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    tuned = tuned_copy(base, {"1.weight": 5})
    with torch.no_grad():
        for i, (before, after) in enumerate(pairs):
            base[0].weight[3, i], tuned[0].weight[3, i] = before, after
        tuned[0].weight[4:] = base[0].weight[4:]
        tuned[0].weight[:3] = base[0].weight[:3]
        tuned[0].weight[3, len(pairs) :] = base[0].weight[3, len(pairs) :]
    return base, tuned, SparseDelta.from_models(base, tuned)


def test_values_that_take_two_numbers(tmp_path):
    """1 to 1e-10, and from one end of the range to the other: there is no float32 number that does it."""
    largest = torch.finfo(torch.float32).max
    base, tuned, delta = changed_to([(1.0, 1e-10), (largest, -largest), (0.7, 0.01234567), (0.5, 0.75)])
    done = quiet_export(delta, base, tmp_path / "a", dense=False)
    assert (done.scalars, done.pairs) == ({"0": 4, "1": 5}, 3)
    assert done.padding == 2 * 32 - 4 - 3 - 5
    assert_same_state(merged(base, tmp_path / "a"), tuned)


def test_minus_zero_is_no_sum(tmp_path):
    """The matrix is stored whole, or refused."""
    base, tuned, delta = changed_to([(2.0, -0.0), (0.0, -0.0)])
    done = quiet_export(delta, base, tmp_path / "a")
    assert done.whole == {"0": "2 of its new values are -0, which no sum is"}
    assert_same_state(merged(base, tmp_path / "a"), tuned)
    with pytest.raises(DeltaError, match="got 0: 2 of its new values are -0"):
        export_shira(delta, base, tmp_path / "x", dense=False)
    assert not (tmp_path / "x").exists()


def test_what_is_refused(tmp_path):
    base, tuned, delta = model_and_delta("bert", {**MATRICES, "LayerNorm.bias": 2})
    out = tmp_path / "a"
    with pytest.raises(DeltaError, match=r"LayerNorm: bias of LayerNorm \(\d modules in all\); store them whole"):
        export_shira(delta, base, out, dense=False)
    with pytest.raises(DeltaError, match="it is applied already"):
        export_shira(delta, tuned, out)
    with pytest.raises(DeltaError, match="expected the base that the delta was made for"):
        export_shira(delta, tiny("bert", seed=1), out)
    with pytest.raises(DeltaError, match="it has none"):
        export_shira(delta, tiny("llama"), out)
    gpt2, _, conv = model_and_delta("gpt2", {"c_fc.weight": 9})
    with pytest.raises(DeltaError, match="none is a matrix of a linear map; merge it instead"):
        export_shira(conv, gpt2, out)
    loose = torch.nn.Module()
    loose.weight = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.raises(DeltaError, match="weight: expected a tensor of a module within the model"):
        export_shira(SparseDelta.from_models(loose, tuned_copy(loose, {"weight": 2})), loose, out)
    with pytest.raises(DeltaError, match="expected a tensor with values, got one on meta"):
        export_shira(delta, copy.deepcopy(base).to("meta"), out)
    base.bert.encoder = torch.nn.DataParallel(base.bert.encoder)
    with pytest.raises(DeltaError, match=r"expected no wrapped modules in it, since PEFT has to find 'bert\.encoder"):
        export_shira(delta, base, out)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "file").write_text("mine")
    with pytest.raises(InputError, match="expected a new or an empty folder"):
        export_shira(delta, base, out)
    assert [path.name for path in out.iterdir()] == ["file"]


def test_the_check_notices_a_wrong_adapter(tmp_path, monkeypatch):
    """One scalar that is off by a bit is found by PEFT's own merge; nothing is left behind."""
    from selective_peft import shira_export

    def wrong(tensors, metadata):
        name = next(name for name in tensors if name.endswith("shira_weight"))
        at = int(tensors[name].abs().argmax())
        tensors[name][at] = torch.nextafter(tensors[name][at], torch.tensor(9.0)) * 1.001
        save_file(tensors, tmp_path / "scratch", metadata)
        return (tmp_path / "scratch").read_bytes()

    base, _, delta = model_and_delta("bert", MATRICES)
    monkeypatch.setattr(shira_export, "save", wrong)
    with pytest.raises(DeltaError, match=r"query\.weight: expected the tuned tensor after PEFT merged the adapter"):
        quiet_export(delta, base, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    quiet_export(delta, base, tmp_path / "a", check=False)
    assert (tmp_path / "a" / "adapter_config.json").exists()
