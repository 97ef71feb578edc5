"""What the tests of deltas on the Hub share: a stand-in that huggingface_hub takes for the Hub, and deltas to push."""

import os
from contextlib import contextmanager

import torch
from deltatests import assert_same_model, trained
from hubserver import OWNER, TOKEN, Hub
from selective_peft import SparseDelta

NAME = f"{OWNER}/delta"


def made_runs():
    """Bases, tuned models and deltas of two runs."""
    made = [trained(torch.bfloat16, seed=seed) for seed in (0, 1)]
    return [
        (base, tuned, SparseDelta.from_optimizer(optimizer, tuned, base_model="someone/base"))
        for base, tuned, optimizer in made
    ]


def named_for_the_hub(variable):
    """Whether huggingface_hub may read it."""
    return variable.startswith("HF_") or variable.lower().endswith("_proxy")


@contextmanager
def standing_in(monkeypatch, tmp_path):
    """The Hub that HF_ENDPOINT would name, with no token saved; a request that it does not know fails the test."""
    from huggingface_hub import constants

    for name in filter(named_for_the_hub, list(os.environ)):
        monkeypatch.delenv(name)
    with Hub() as made:
        template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, in compiled code
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield made
    assert made.unknown == []


def pushed(delta, name=NAME, **options):
    return delta.push_to_hub(name, **{"token": TOKEN, **options})


def assert_gives(run, delta):
    base, tuned, expected = run
    assert delta.fingerprint == expected.fingerprint
    assert delta.about == expected.about
    model = trained(torch.bfloat16)[0]
    model.load_state_dict(base.state_dict())
    delta.apply_(model)
    assert_same_model(model, tuned)
    if delta.has_originals:
        delta.revert_(model)
        assert_same_model(model, base)
