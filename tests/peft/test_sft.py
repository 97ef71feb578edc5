"""TRL's SFTTrainer, beyond the example in docs/engines.md: resuming, accumulation, deltas, as with the Trainer."""

import pytest
import torch
from datasets import Dataset
from selective_peft import SparseDelta
from selective_peft.hf import SelectiveCallback, selective_optimizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from selective_kernels.testing import assert_bitwise_equal

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefgh"]
ROWS = [{"prompt": f"{a} {b}", "completion": f" {b} {a}"} for a in "abcd" for b in "efgh"]
STEPS, CUT = 8, 4


def tokenizer():
    split = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=split, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def trained(folder, resume=None, **options):
    args = SFTConfig(
        str(folder), learning_rate=1e-2, max_steps=STEPS, save_steps=CUT, bf16=False, report_to=[], disable_tqdm=True,
        per_device_train_batch_size=2, **options,
    )  # fmt: skip
    trainer = SFTTrainer(
        model(), args, train_dataset=Dataset.from_list(ROWS * 4), processing_class=tokenizer(),
        optimizer_cls_and_kwargs=selective_optimizer(args, budget=100), callbacks=[SelectiveCallback()],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulation"])
def test_a_resumed_run_is_as_one_that_never_stopped(tmp_path, options):
    whole = trained(tmp_path / "whole", **options)
    resumed = trained(tmp_path / "resumed", str(tmp_path / "whole" / f"checkpoint-{CUT}"), **options)
    assert whole.optimizer.optimizer.num_selected == resumed.optimizer.optimizer.num_selected == 100
    delta, base = SparseDelta.load(tmp_path / "resumed" / f"checkpoint-{STEPS}" / "delta"), model()
    delta.apply_(base)
    tuned = dict(whole.model.cpu().named_parameters())
    for again in (resumed.model.cpu(), base):
        for name, param in again.named_parameters():
            assert_bitwise_equal(param.detach(), tuned[name].detach(), name)
    assert any(not torch.equal(param, tuned[name]) for name, param in model().named_parameters())
