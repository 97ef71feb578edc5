"""Tiny models with random weights, and files for each task that they can learn in a few steps."""

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

NAMES, PLACES, REST = ["Anna", "Ben", "Clara"], ["Bonn", "Graz", "Bern"], ["lives", "in", "and", "likes", "the"]
PARTS = ["d", "s"]  # of words: "liked" is two tokens
WORDS = [*NAMES, *PLACES, *REST, "like", *(f"##{part}" for part in PARTS)]


def word_tokenizer(special, words, end=None):
    """Whole words, or WordPiece if some begin with ##; with an end token after each text if there is one."""
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    kind = models.WordPiece if any(word.startswith("##") for word in words) else models.WordLevel
    made = Tokenizer(kind(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if end is not None:
        made.post_processor = processors.TemplateProcessing(f"$A {end}", special_tokens=[(end, vocabulary[end])])
    return made, vocabulary


def byte_tokenizer(end):
    """Bytes, as of GPT-2 without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate([end, *alphabet])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made, vocabulary


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert(folder):
    """An encoder whose tokenizer parts words."""
    words, vocabulary = word_tokenizer(["[PAD]", "[UNK]", "[SEP]"], WORDS, "[SEP]")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]", model_max_length=32
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    return saved(folder, BertModel(config), tokenizer)


def t5(folder):
    words, vocabulary = word_tokenizer(["<pad>", "</s>", "[UNK]"], [*NAMES, *PLACES, *REST], "</s>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="[UNK]", model_max_length=32
    )
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(vocabulary), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return saved(folder, T5ForConditionalGeneration(config), tokenizer)


def llama_tokenizer(known=(*NAMES, *PLACES, *REST), longest=32):
    """Whole words after a begin token; and the vocabulary."""
    words, vocabulary = word_tokenizer(["<s>", "</s>", "[UNK]"], known)
    words.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="[UNK]", model_max_length=longest
    )
    return tokenizer, vocabulary


def llama(folder, known=(*NAMES, *PLACES, *REST), longest=32):
    tokenizer, vocabulary = llama_tokenizer(known, longest)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=longest, bos_token_id=0, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    return saved(folder, LlamaForCausalLM(config), tokenizer)


def gpt2(folder):
    words, vocabulary = byte_tokenizer("<|end|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>", model_max_length=64)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return saved(folder, GPT2LMHeadModel(config), tokenizer)


MODELS = {"bert": bert, "t5": t5, "llama": llama, "gpt2": gpt2}


def tagged(count, seed=0, prefix="B-"):
    """Words and tags: names are persons, towns are places."""
    rng = random.Random(seed)
    tag = dict.fromkeys(NAMES, f"{prefix}PER") | dict.fromkeys(PLACES, f"{prefix}LOC")
    rows = []
    for _ in range(count):
        words = [rng.choice([*NAMES, *PLACES, *REST]) for _ in range(rng.randint(3, 8))]
        rows.append({"text": words, "label": [tag.get(word, "O") for word in words]})
    return rows


def written(count, seed=0):
    """A name asks for the town that it always lives in."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        who = rng.randrange(3)
        rows.append({"text": f"the {NAMES[who]} {rng.choice(REST)}", "label": f"lives in {PLACES[who]}"})
    return rows
