"""Two small classifiers with a few rows each, for the tests of the Fisher scores."""

import torch
import transformers

ROWS = 7
CLASSES = 3
LENGTHS = torch.tensor([9, 4, 6, 9, 2, 7, 5])  # tokens of each row


class Plain(torch.nn.Module):
    """A model that is none of transformers': a mapping as output, dropout, and batch statistics."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh())
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, CLASSES)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.unused = torch.nn.Parameter(torch.ones(2, 3))
        self.empty = torch.nn.Parameter(torch.ones(0, 3))
        self.calls = 0

    def forward(self, x, y=None):
        self.calls += 1
        logits = self.head(self.drop(self.body(x))) * self.scale + self.empty.sum()
        loss = None if y is None else torch.nn.functional.cross_entropy(logits.float(), y)
        return {"loss": loss, "logits": logits}


def plain_rows():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 5, generator=generator)
    return {"x": x, "y": torch.randint(CLASSES, (ROWS,), generator=generator)}


def tiny_bert(**changes):
    transformers.set_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=32, num_labels=CLASSES, initializer_range=0.3)
    config.update(changes)
    return transformers.BertForSequenceClassification(config)


def bert_rows():
    """Rows padded to 9 tokens."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(9) < LENGTHS[:, None]).long()
    tokens = torch.randint(1, 50, (ROWS, 9), generator=generator) * mask
    return {"input_ids": tokens, "attention_mask": mask, "labels": torch.randint(CLASSES, (ROWS,), generator=generator)}


def batches(rows, size):
    return [{key: value[i : i + size] for key, value in rows.items()} for i in range(0, ROWS, size)]
