"""What `fisher_scores` refuses."""

import pytest
import torch
from selective_peft.fisher import fisher_scores


class Model(torch.nn.Module):
    """One matrix; the output is up to the test."""

    def __init__(self, output):
        super().__init__()
        self.first = torch.nn.Linear(4, 3)
        self.second = torch.nn.Linear(3, 3)
        self.output = output

    def forward(self, x):
        return self.output(self.second(self.first(x)))


def loss_only(y):
    return {"loss": y.square().sum()}


X = torch.arange(8.0).reshape(2, 4) + 1.0


def scores(output=loss_only, data=None, num_samples=2, **more):
    return fisher_scores(Model(output), [{"x": X}] if data is None else data, num_samples, progress=False, **more)


@pytest.mark.parametrize("given", [0, -1, 1.5, True, None])
def test_num_samples(given):
    with pytest.raises(ValueError, match="num_samples: expected an integer >= 1, got "):
        scores(num_samples=given)


def test_types_by_name():
    with pytest.raises(ValueError, match=r"sample_type: expected one of \['label', 'expected'\], got 'true'"):
        scores(sample_type="true")
    with pytest.raises(ValueError, match=r"grad_type: expected one of \['square', 'absolute'\], got 'l2'"):
        scores(grad_type="l2")


def test_a_frozen_model():
    with pytest.raises(ValueError, match="model: expected parameters that require a gradient, got none"):
        fisher_scores(Model(loss_only).requires_grad_(False), [{"x": X}])


def test_no_rows():
    for data in ([], [{"x": X[:0]}]):
        with pytest.raises(ValueError, match="dataloader: expected one row or more, got none"):
            scores(data=data)


@pytest.mark.parametrize(
    ("batch", "kind", "message"),
    [
        (X, TypeError, "got Tensor"),
        ("x", TypeError, "got str"),
        ({"x": X, "text": ["a", "b"]}, TypeError, "got list for 'text'"),
        ({"x": X, "y": torch.zeros(3)}, ValueError, r"got shapes \{'x': \(2, 4\), 'y': \(3,\)\}"),
        ({"x": X, "y": torch.tensor(1.0)}, ValueError, r"got shapes \{'x': \(2, 4\), 'y': \(\)\}"),
        ({"y": torch.tensor(1.0)}, ValueError, r"got shapes \{'y': \(\)\}"),
        ({}, ValueError, r"got shapes \{\}"),
    ],
)
def test_batches_of_another_form(batch, kind, message):
    with pytest.raises(kind, match=f"dataloader: expected batches that are mappings of tensors .*{message}"):
        scores(data=[batch])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda y: y, "got Tensor with loss = None"),
        (lambda y: (y.sum(), y), "got tuple with loss = None"),
        (lambda y: {"logits": y, "loss": None}, r"do the rows have labels\?\), got dict with loss = None"),
    ],
)
def test_an_output_without_loss(output, message):
    with pytest.raises(TypeError, match=f"model: expected an output with loss .*{message}"):
        scores(output)


def test_a_loss_that_cannot_be_differentiated():
    with pytest.raises(ValueError, match=r"model: expected a loss of one number, got shape \(1, 3\)"):
        scores(lambda y: {"loss": y})
    with pytest.raises(ValueError, match="model: expected an output that depends on parameters"):
        scores(lambda y: {"loss": y.detach().sum()})


@pytest.mark.parametrize(
    ("logits", "shape"),
    [
        (lambda y: y[:, None], r"\(1, 1, 3\)"),  # tokens
        (lambda y: y[0], r"\(3,\)"),
        (lambda y: y[:, :1], r"\(1, 1\)"),  # regression
        (lambda y: torch.cat([y, y]), r"\(2, 3\)"),
    ],
)
def test_expected_takes_one_row_of_classes(logits, shape):
    with pytest.raises(ValueError, match=f"sample_type: .* \"label\" for this model .*'expected'.* shape {shape}"):
        scores(lambda y: {"logits": logits(y)}, sample_type="expected")


def test_expected_needs_logits_of_classes():
    with pytest.raises(TypeError, match=r"model: expected an output with logits .*, got dict with logits = None"):
        scores(sample_type="expected")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
        problem_type="multi_label_classification",
    )
    model = transformers.BertForSequenceClassification(config)
    with pytest.raises(ValueError, match="of a model for multi_label_classification"):
        fisher_scores(model, [{"input_ids": torch.ones(1, 4, dtype=torch.long)}], 1, "expected", progress=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite(bad):
    x = X.clone()
    x[1, 2] = bad
    with pytest.raises(FloatingPointError, match=r"gradient of first.weight, row 1: expected finite values .*, got"):
        scores(lambda y: {"loss": y.sum()}, data=[{"x": x}])


def test_gradients_too_large_to_be_squared():
    """2e20 is a float32, its square is not; its size may be added up."""
    huge = {"data": [{"x": X * 1e20}], "output": lambda y: {"loss": y.sum()}}
    with pytest.raises(FloatingPointError, match=r"of first.weight, row 0: expected finite values of at most 1.3e\+19"):
        scores(**huge)
    assert all(bool(score.isfinite().all()) for score in scores(**huge, grad_type="absolute").values())


def test_sparse_gradients():
    class Sparse(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(5, 2, sparse=True)

        def forward(self, x):
            return {"loss": self.table(x).sum()}

    with pytest.raises(TypeError, match=r"gradient of table.weight: expected a dense tensor, got layout torch.sparse"):
        fisher_scores(Sparse(), [{"x": torch.tensor([1])}], 1, progress=False)
