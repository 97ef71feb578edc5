"""The FISH mask's scores against a gradient per sample."""

import copy
import warnings

import pytest
import torch
from fishing import CLASSES, LENGTHS, ROWS, Plain, batches, bert_rows, plain_rows, tiny_bert
from selective_peft.fisher import fisher_scores

from selective_kernels.testing import assert_bitwise_equal

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

POWER = {"square": 2, "absolute": 1}
# The sums are over the same float32 gradients, in another order. Attention does not depend on its key bias: its
# gradient is rounding alone, of about 1e-9.
CLOSE = {"rtol": 1e-4, "atol": 1e-9}
ATOL = {"square": 1e-9, "absolute": 1e-7}
ROUNDING_ALONE = ("unused", "empty", "bert.encoder.layer.0.attention.self.key.bias")
SAMPLE_TYPES, GRAD_TYPES = ["label", "expected"], ["square", "absolute"]


def output_of(model, rows, i):
    return model(**{key: value[i : i + 1] for key, value in rows.items()})


def log_p(model, rows, i):
    return torch.log_softmax(output_of(model, rows, i)["logits"].double(), dim=-1)[0]


def direct(model, rows, sample_type, grad_type):
    """Per row, and per class for "expected": one backward pass through a copy of the model, summed in float64."""
    model = copy.deepcopy(model).eval()
    named = {name: param for name, param in model.named_parameters() if param.requires_grad}
    total = {name: torch.zeros_like(param, dtype=torch.float64) for name, param in named.items()}
    for i in range(ROWS):
        for c in range(CLASSES if sample_type == "expected" else 1):
            model.zero_grad()
            target = output_of(model, rows, i)["loss"]
            weight = 1.0
            if sample_type == "expected":
                target = log_p(model, rows, i)[c]
                weight = float(target.detach().exp())
            target.backward()
            for name, param in named.items():
                if param.grad is not None:
                    total[name] += weight * param.grad.double().abs() ** POWER[grad_type]
    return {name: value / ROWS for name, value in total.items()}


def assert_close(actual, expected, **tolerance):
    assert list(actual) == list(expected)
    for name, score in actual.items():
        assert score.dtype == torch.float32
        assert not score.requires_grad
        torch.testing.assert_close(score.double(), expected[name].double(), **{**CLOSE, **tolerance}, msg=name)


@pytest.mark.parametrize("grad_type", GRAD_TYPES)
@pytest.mark.parametrize("sample_type", SAMPLE_TYPES)
@pytest.mark.parametrize(("model", "rows"), [(Plain, plain_rows), (tiny_bert, bert_rows)], ids=["plain", "bert"])
def test_against_a_backward_pass_per_sample(model, rows, sample_type, grad_type):
    model = model()
    expected = direct(model, rows(), sample_type, grad_type)
    actual = fisher_scores(model, batches(rows(), 3), ROWS, sample_type, grad_type, progress=False)
    assert_close(actual, expected, atol=ATOL[grad_type])
    for name, score in actual.items():
        assert name in ROUNDING_ALONE or float(score.max()) > 100 * ATOL[grad_type], name


@pytest.mark.parametrize("grad_type", GRAD_TYPES)
@pytest.mark.parametrize("sample_type", SAMPLE_TYPES)
def test_against_torch_func(sample_type, grad_type):
    """The definition once more, without a loop: the expectation over all classes of a Jacobian of log p."""
    model, rows = Plain(), plain_rows()
    reference = copy.deepcopy(model).eval()
    params = {name: param.detach() for name, param in reference.named_parameters()}
    buffers = dict(reference.named_buffers())

    def log_p_of(p, x):
        logits = torch.func.functional_call(reference, (p, buffers), (x[None],))["logits"]
        return torch.log_softmax(logits[0], dim=-1)

    jacobians = torch.func.vmap(torch.func.jacrev(log_p_of), (None, 0))(params, rows["x"])
    probability = torch.func.vmap(log_p_of, (None, 0))(params, rows["x"]).exp()
    weights = probability if sample_type == "expected" else torch.nn.functional.one_hot(rows["y"], CLASSES).float()
    expected = {
        name: (jacobian.abs() ** POWER[grad_type] * weights.reshape(ROWS, CLASSES, *[1] * (jacobian.dim() - 2)))
        .sum(dim=1)
        .mean(dim=0)
        for name, jacobian in jacobians.items()
    }
    assert_close(fisher_scores(model, batches(rows, 3), ROWS, sample_type, grad_type, progress=False), expected)


@pytest.mark.parametrize("sample_type", SAMPLE_TYPES)
def test_the_batch_size_makes_no_difference(sample_type):
    one, three, all_at_once = (
        fisher_scores(tiny_bert(), batches(bert_rows(), size), ROWS, sample_type, progress=False)
        for size in (1, 3, ROWS)
    )
    for name, score in one.items():
        assert_bitwise_equal(three[name], score, name)
        assert_bitwise_equal(all_at_once[name], score, name)


def test_padding_adds_nothing():
    """Rows cut to their own length give the scores of padded rows with their attention masks."""
    rows = bert_rows()
    cut = [
        {key: value[i : i + 1, : LENGTHS[i]] if value.dim() == 2 else value[i : i + 1] for key, value in rows.items()}
        for i in range(ROWS)
    ]
    whole = fisher_scores(tiny_bert(), batches(rows, 4), ROWS, progress=False)
    assert_close(fisher_scores(tiny_bert(), cut, ROWS, progress=False), whole, rtol=1e-3, atol=1e-7)
    unmasked = fisher_scores(tiny_bert(), batches({**rows, "attention_mask": rows["attention_mask"] | 1}, 4), ROWS)
    name = "bert.encoder.layer.0.attention.self.value.weight"
    assert not torch.allclose(unmasked[name], whole[name], rtol=1e-2)


def test_only_the_first_rows_are_used_and_no_batch_is_fetched_in_vain():
    fetched = []

    def loader():
        for number, batch in enumerate(batches(plain_rows(), 2)):
            fetched.append(number)
            yield batch

    model, rows = Plain(), {key: value[:4] for key, value in plain_rows().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = fisher_scores(model, loader(), 4, progress=False)
        expected = fisher_scores(model, [rows], 4, progress=False)
    assert fetched == [0, 1]
    assert model.calls == 8
    assert_close(actual, expected)
    three = fisher_scores(model, [rows], 3, progress=False)
    assert not torch.allclose(three["head.weight"], actual["head.weight"])


def test_fewer_rows_than_asked_for_are_enough_but_said():
    with pytest.warns(UserWarning, match="dataloader: it gave 7 of the 1024 rows of num_samples"):
        actual = fisher_scores(Plain(), batches(plain_rows(), 3), progress=False)
    assert_close(actual, direct(Plain(), plain_rows(), "label", "square"))


def test_parameters_without_gradient_get_zeros_and_frozen_ones_nothing():
    model = Plain()
    model.body.requires_grad_(False)
    scores = fisher_scores(model, [plain_rows()], ROWS, progress=False)
    assert list(scores) == ["scale", "unused", "empty", "head.weight", "head.bias"]
    assert not scores["unused"].any()
    assert (scores["scale"].shape, scores["empty"].shape) == ((), (0, 3))
    assert [param.requires_grad for param in model.body.parameters()] == [False] * 4


def test_tied_parameters_count_once():
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=12)
    )
    tokens = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    scores = fisher_scores(model, [{"input_ids": tokens, "labels": tokens}], 3, progress=False)
    assert list(scores) == [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in scores
    model.eval()
    grads = []
    for row in tokens.split(1):
        model.zero_grad()
        model(input_ids=row, labels=row).loss.backward()
        grads.append(model.lm_head.weight.grad.clone())
    expected = torch.stack(grads).square().mean(dim=0)
    torch.testing.assert_close(scores["transformer.wte.weight"], expected, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradients_are_summed_in_float32(dtype):
    """Squares of fp16 gradients would vanish below 6e-8, and a bf16 sum stands still after 256 equal terms."""
    model = torch.nn.Linear(3, 1, bias=False).to(dtype)

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return {"loss": self.inner(x).sum()}

    x = torch.tensor([[1e-5, 0.5, 1.0]], dtype=dtype).expand(600, 3)
    score = fisher_scores(Wrapped(), [{"x": x}], 600, progress=False)["inner.weight"]
    torch.testing.assert_close(score, x[:1].float().square(), rtol=1e-5, atol=0.0)


def test_16_bit_models_run():
    scores = fisher_scores(tiny_bert().bfloat16(), [bert_rows()], ROWS, progress=False)
    full = fisher_scores(tiny_bert(), [bert_rows()], ROWS, progress=False)
    assert all(score.dtype == torch.float32 for score in scores.values())
    ratio = sum(float(s.sum()) for s in scores.values()) / sum(float(s.sum()) for s in full.values())
    assert 0.8 < ratio < 1.25


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("sample_type", SAMPLE_TYPES)
def test_a_model_on_a_gpu(sample_type):
    """Rows follow the model; scores are where the parameters are."""
    expected = fisher_scores(tiny_bert(), [bert_rows()], ROWS, sample_type, progress=False)
    before = torch.cuda.get_rng_state()
    actual = fisher_scores(tiny_bert().cuda(), [bert_rows()], ROWS, sample_type, progress=False)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert all(score.is_cuda for score in actual.values())
    assert_close({name: score.cpu() for name, score in actual.items()}, expected, rtol=1e-2, atol=1e-6)
