"""Deltas on checkpoints of transformers: what is merged loads as the tuned model, bit for bit, with nothing made up."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from checkpoints import files_in, tensors_in
from deltatests import assert_same_model
from selective_peft import SparseDelta
from selective_peft.patch_files import apply_files, diff_files, merge_files, revert_files

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

from tinymodels import MODELS  # noqa: E402

AUTO = {
    "bert": transformers.AutoModel,
    "t5": transformers.AutoModelForSeq2SeqLM,
    "llama": transformers.AutoModelForCausalLM,
    "gpt2": transformers.AutoModelForCausalLM,
}
FORMS = {"one file": {}, "shards": {"max_shard_size": "20KB"}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MODELS.items()}


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def tuned_from(model, seed=0, share=0.02):
    """A copy with some scalars of each parameter changed."""
    generator = torch.Generator().manual_seed(seed)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for param in changed.parameters():
            places = torch.rand(param.shape, generator=generator) < share
            param[places] += 0.25
    return changed


def loaded(auto, folder):
    """A model of which every weight was in the folder."""
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    return model


@pytest.mark.parametrize(
    ("dtype", "form"), [(torch.float32, "one file"), (torch.bfloat16, "shards"), (torch.float16, "shards")]
)
@pytest.mark.parametrize("family", sorted(MODELS))
def test_families(folders, tmp_path, family, form, dtype):
    """Tied ones among them: T5 and GPT-2 store the embedding once, under the name that the model gives it first."""
    base = AUTO[family].from_pretrained(folders[family], dtype=dtype)
    base.save_pretrained(tmp_path / "base", **FORMS[form])
    assert (len(list((tmp_path / "base").glob("*.safetensors"))) > 1) == (form == "shards")
    tuned = tuned_from(base)
    delta = SparseDelta.from_models(base, tuned)
    apply_files(tmp_path / "base", delta, tmp_path / "out")
    assert_same_model(loaded(AUTO[family], tmp_path / "out"), tuned)
    revert_files(tmp_path / "out", delta, tmp_path / "back")
    assert files_in(tmp_path / "back") == files_in(tmp_path / "base")
    merge_files(tmp_path / "base", delta, tmp_path / "merged")
    assert_same_model(loaded(AUTO[family], tmp_path / "merged"), tuned)
    tuned.save_pretrained(tmp_path / "saved", **FORMS[form])
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == names
    assert (tmp_path / "merged" / "config.json").read_text() == (tmp_path / "saved" / "config.json").read_text()
    assert diff_files(tmp_path / "base", tmp_path / "saved").fingerprint == delta.fingerprint


def with_head(folder, auto, dtype, kind):
    """A model with a new head, a tuned copy of it, and the delta; a head with originals as training has it, or new."""
    torch.manual_seed(3)
    base = auto.from_pretrained(folder, num_labels=3, dtype=dtype)
    tuned = tuned_from(base)
    heads = [name for name, _ in base.named_parameters() if not name.startswith(f"{base.base_model_prefix}.")]
    assert heads
    state = dict(base.named_parameters())
    with torch.no_grad():
        for name in heads:
            tuned.get_parameter(name).normal_()
    if kind == "new":
        state = {name: param for name, param in state.items() if name not in heads}
    delta = SparseDelta.from_models(state, dict(tuned.named_parameters()))
    assert {name for name, change in delta.changes.items() if change.is_whole} == set(heads)
    about = SparseDelta.from_models(base, tuned).about
    return tuned, SparseDelta(delta.changes, about)


@pytest.mark.parametrize("kind", ["new", "trained"])
@pytest.mark.parametrize(("dtype", "form"), [(torch.float32, "one file"), (torch.bfloat16, "shards")])
@pytest.mark.parametrize("family", sorted(MODELS))
def test_heads(folders, tmp_path, family, dtype, form, kind):
    """Checkpoints of the bare model, or with another head; the prefix is found, the head is added."""
    auto = transformers.AutoModelForSequenceClassification
    AUTO[family].from_pretrained(folders[family], dtype=dtype).save_pretrained(tmp_path / "base", **FORMS[form])
    tuned, delta = with_head(tmp_path / "base", auto, dtype, kind)
    merge_files(tmp_path / "base", delta, tmp_path / "merged")
    model = loaded(auto, tmp_path / "merged")
    assert type(model) is type(tuned)
    assert model.config.num_labels == 3
    assert model.dtype == dtype
    assert_same_model(model, tuned)
    assert dict(tuned.named_parameters()).keys() <= tensors_in(tmp_path / "merged").keys()
    apply_files(tmp_path / "base", delta, tmp_path / "out")
    undone = revert_files(tmp_path / "out", delta, tmp_path / "back")
    if kind == "new":
        assert undone.removed
        assert files_in(tmp_path / "back").keys() == files_in(tmp_path / "base").keys()
        before, after = tensors_in(tmp_path / "base"), tensors_in(tmp_path / "back")
        assert {name: tensor.float().tolist() for name, tensor in after.items()} == {
            name: tensor.float().tolist() for name, tensor in before.items()
        }


def test_a_head_on_a_whole_model_is_replaced(folders, tmp_path):
    """The base has the head already: nothing is added, and it comes back."""
    auto = transformers.AutoModelForSequenceClassification
    auto.from_pretrained(folders["bert"], num_labels=3).save_pretrained(tmp_path / "base")
    tuned, delta = with_head(tmp_path / "base", auto, torch.float32, "trained")
    assert apply_files(tmp_path / "base", delta, tmp_path / "out").added == ()
    assert_same_model(loaded(auto, tmp_path / "out"), tuned)
    revert_files(tmp_path / "out", delta, tmp_path / "back")
    assert files_in(tmp_path / "back") == files_in(tmp_path / "base")


def test_the_bare_model_of_a_checkpoint_with_a_head(folders, tmp_path):
    """The checkpoint has a prefix that the delta lacks; merged, only the bare model is left."""
    transformers.BertForSequenceClassification.from_pretrained(folders["bert"]).save_pretrained(tmp_path / "base")
    base = transformers.BertModel.from_pretrained(tmp_path / "base")
    tuned = tuned_from(base)
    delta = SparseDelta.from_models(base, tuned)
    apply_files(tmp_path / "base", delta, tmp_path / "out")
    assert_same_model(loaded(transformers.AutoModel, tmp_path / "out"), tuned)
    assert "classifier.weight" in tensors_in(tmp_path / "out")
    done = merge_files(tmp_path / "base", delta, tmp_path / "merged")
    assert set(done.removed) == {"classifier.weight", "classifier.bias"}
    assert tensors_in(tmp_path / "merged").keys() == dict(base.named_parameters()).keys()
    assert_same_model(loaded(transformers.AutoModel, tmp_path / "merged"), tuned)


def test_a_merged_configuration_tells_no_folder(folders, tmp_path):
    base = transformers.AutoModel.from_pretrained(folders["bert"])
    tuned = tuned_from(base)
    delta = SparseDelta.from_models(base, tuned)
    config = {**delta.about.model_config, "_name_or_path": "/home/somebody/model", "hidden_act": "relu"}
    about = type(delta.about)(model_config=config)
    merge_files(folders["bert"], SparseDelta(delta.changes, about), tmp_path / "merged")
    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert written == {key: value for key, value in config.items() if key != "_name_or_path"}


def test_fused_experts_are_refused(tmp_path):
    """transformers 5 fuses experts when it loads them: the model's tensors are not those of the file."""
    config = transformers.MixtralConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=24, num_local_experts=2,
    )  # fmt: skip
    base = transformers.MixtralForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    assert not dict(base.named_parameters()).keys() <= tensors_in(tmp_path / "base").keys()
    tuned = tuned_from(base)
    for whole_above in (0.5, 0.0):  # as single scalars, and as whole tensors, which are not to be added as new ones
        delta = SparseDelta.from_models(base, tuned, whole_above=whole_above)
        for operation in (apply_files, merge_files):
            with pytest.raises(ValueError, match=r"there is none.* patched in memory"):
                operation(tmp_path / "base", delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_tensors_of_a_model_with_fused_experts(tmp_path):
    """What is stored as it is in memory can be patched."""
    config = transformers.MixtralConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=24, num_local_experts=2,
    )  # fmt: skip
    base = transformers.MixtralForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[0].self_attn.q_proj.weight[0] += 1
    merge_files(tmp_path / "base", SparseDelta.from_models(base, tuned), tmp_path / "merged")
    assert_same_model(loaded(transformers.AutoModelForCausalLM, tmp_path / "merged"), tuned)


@pytest.mark.parametrize("trusted", [True, False])
def test_only_the_base_says_what_code_may_be_run(folders, tmp_path, trusted):
    """A delta from the Hub must not bring code into a model whose own code is trusted."""
    base = AUTO["bert"].from_pretrained(folders["bert"])
    base.save_pretrained(tmp_path / "base")
    mine = {"AutoModel": "modeling.Trusted"}
    if trusted:
        path = tmp_path / "base" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": mine}))
    delta = SparseDelta.from_models(base, tuned_from(base))
    theirs = {"auto_map": {"AutoModel": "evil/repo--modeling.Evil"}, "custom_pipelines": {"x": {"impl": "evil.X"}}}
    config = {**delta.about.model_config, **theirs, "part": {"kept": 1, **theirs}}
    merge_files(
        tmp_path / "base", SparseDelta(delta.changes, replace(delta.about, model_config=config)), tmp_path / "out"
    )
    merged = json.loads((tmp_path / "out" / "config.json").read_text())
    assert merged.get("auto_map") == (mine if trusted else None)
    assert "custom_pipelines" not in merged
    assert merged["part"] == {"kept": 1}
