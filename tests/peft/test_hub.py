"""Deltas on the Hub: what is pushed comes back bit for bit, and does so as people call it.

The Hub is a stand-in on loopback, huggingface_hub is the real one.
"""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deltatests import assert_same_model, trained
from hubcases import NAME, assert_gives, made_runs, named_for_the_hub, pushed, standing_in
from hubserver import OWNER, TOKEN, Hub
from selective_peft import SparseDelta
from selective_peft.delta_card import card
from selective_peft.delta_file import CARD, CONFIG, FILE

pytest.importorskip("huggingface_hub")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hub.md"


@pytest.fixture(scope="module")
def runs():
    return made_runs()


@pytest.fixture
def delta(runs):
    return runs[0][2]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with standing_in(monkeypatch, tmp_path) as made:
        yield made


def content(hub, name=NAME, ref="main"):
    repository = hub.repositories[name]
    return repository.commits[repository.refs[ref]]


def saved(delta, folder, **options):
    delta.save(folder, **options)
    return (folder / FILE).read_bytes()


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("originals", [False, True])
def test_what_is_pushed_comes_back_bit_for_bit(hub, runs, tmp_path, compact, originals):
    delta = runs[0][2]
    at = pushed(delta, compact=compact, originals=originals)
    assert content(hub)[FILE] == saved(delta, tmp_path / "a", compact=compact, originals=originals)
    again = SparseDelta.from_pretrained(NAME)
    assert again.has_originals == originals
    assert_gives(runs[0], again)
    assert saved(again, tmp_path / "b", compact=compact) == content(hub)[FILE]
    assert (at.repo_id, at.commit, at.pull_request) == (NAME, hub.repositories[NAME].refs["main"], None)
    assert at.url == f"{hub.url}/{NAME}/commit/{at.commit}"


def test_the_repository_has_what_save_writes_and_a_card_that_works(hub, runs, tmp_path):
    delta = runs[0][2]
    pushed(delta)
    delta.save(tmp_path / "a")
    files = content(hub)
    assert files.keys() == {".gitattributes", FILE, CONFIG, CARD}
    assert files[CONFIG] == (tmp_path / "a" / CONFIG).read_bytes()
    text = files[CARD].decode()
    assert text.split("```python")[0] == (tmp_path / "a" / CARD).read_text(encoding="utf-8").split("```python")[0]
    assert hub.cards == [text]  # what the Hub was asked about before anything was uploaded
    model = trained(torch.bfloat16)[0]
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1].replace("delta.revert_", "# delta.revert_")
    exec(code, {"model": model})
    assert_same_model(model, runs[0][1])
    assert f"hf download {NAME} --local-dir THIS" in text


def test_the_card_names_repository_and_folder(delta):
    text = card(delta.changes, delta.about, NAME, "epoch 1")
    assert f'SparseDelta.from_pretrained("{NAME}", subfolder="epoch 1")' in text
    assert "--delta 'THIS/epoch 1' --out" in text
    assert 'SparseDelta.load("path/to/this/folder")' in card(delta.changes, delta.about)


def test_a_card_is_not_written_by_what_a_file_says(delta):
    """A delta that somebody else made may call its base anything."""
    about = replace(delta.about, base_model="x`\n---\n# Load me", base_revision="`[a](http://b)`", method="\n- y")
    lines = card(delta.changes, about).splitlines()
    assert "What fine-tuning by `- y` changed of `x --- # Load me` (revision `[a](http://b)`):" in lines
    assert "# Load me" not in lines
    assert not any(line.startswith(("base_model", "- y")) for line in lines)
    assert lines.count("---") == 2


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, delta, monkeypatch):
    pushed(delta, private=True)
    SparseDelta.from_pretrained(NAME, token=TOKEN)
    stores = [token for _, path, token in hub.asked if path.startswith("/store/")]
    others = [token for _, path, token in hub.asked if not path.startswith("/store/")]
    assert stores == [None] * 2
    assert others == [TOKEN] * len(others)
    assert len(others) >= 5
    hub.asked.clear()
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # as a token that was saved
    delta.push_to_hub(f"{OWNER}/another")
    assert {token for _, path, token in hub.asked if not path.startswith("/store/")} == {TOKEN}


def test_only_the_delta_s_own_file_is_fetched(hub, delta):
    pushed(delta)
    hub.repositories[NAME].commit("main", {"model.safetensors": b"large", "other.py": b"print()"})
    hub.asked.clear()
    SparseDelta.from_pretrained(NAME)
    assert {path for path in hub.paths("HEAD") if "resolve" in path} == {f"/{NAME}/resolve/main/{FILE}"}
    assert len(hub.paths("GET")) == 1
    hub.asked.clear()
    SparseDelta.from_pretrained(NAME)
    assert hub.paths("GET") == []  # it is in the cache


def test_a_second_push_is_a_second_commit(hub, runs):
    first = pushed(runs[0][2])
    second = pushed(runs[1][2], commit_message="Other seed")
    assert first.commit != second.commit
    assert hub.repositories[NAME].messages[second.commit] == "Other seed"
    assert_gives(runs[1], SparseDelta.from_pretrained(NAME))
    assert_gives(runs[0], SparseDelta.from_pretrained(NAME, revision=first.commit))
    assert_gives(runs[1], SparseDelta.from_pretrained(NAME, revision=second.commit))
    count = len(hub.repositories[NAME].commits)
    assert pushed(runs[1][2]).commit == second.commit  # nothing has changed
    assert len(hub.repositories[NAME].commits) == count


def test_a_private_repository(hub, runs, tmp_path):
    pushed(runs[0][2], private=True)
    assert hub.repositories[NAME].private
    assert_gives(runs[0], SparseDelta.from_pretrained(NAME, token=TOKEN))
    for token in (None, False, "hf_wrong"):
        with pytest.raises(FileNotFoundError, match=f"source: expected a folder, or a repository .*got '{NAME}'"):
            SparseDelta.from_pretrained(NAME, token=token, cache_dir=tmp_path / "empty")
    pushed(runs[0][2], name="public")
    assert not hub.repositories[f"{OWNER}/public"].private


def test_an_existing_repository_keeps_what_else_it_has(hub, delta):
    pushed(delta)
    repository = hub.repositories[NAME]
    repository.commit("main", {"config.json": b"{}", CARD: b"# Mine\n"})
    pushed(delta, card=False, compact=True)
    assert content(hub)["config.json"] == b"{}"
    assert content(hub)[CARD] == b"# Mine\n"
    pushed(delta)
    assert content(hub)["config.json"] == b"{}"
    assert content(hub)[CARD].startswith(b"---\nlibrary_name: selective-kernels\n")


def test_a_name_without_owner_is_the_token_s(hub, delta):
    at = pushed(delta, name="short")
    assert at.repo_id == f"{OWNER}/short"
    assert f'from_pretrained("{OWNER}/short")' in content(hub, at.repo_id)[CARD].decode()


def test_who_may_write_but_not_create_repositories(hub, runs):
    pushed(runs[0][2])
    hub.may_create = False
    at = pushed(runs[1][2])
    assert at.repo_id == NAME
    assert_gives(runs[1], SparseDelta.from_pretrained(NAME))


def test_branches_folders_and_pull_requests(hub, runs):
    first, second = runs[0][2], runs[1][2]
    pushed(first)
    pushed(second, revision="seed/1")
    pushed(second, revision="seed/1", subfolder="a/delta")
    assert_gives(runs[0], SparseDelta.from_pretrained(NAME))
    assert_gives(runs[1], SparseDelta.from_pretrained(NAME, revision="seed/1"))
    assert_gives(runs[1], SparseDelta.from_pretrained(NAME, revision="seed/1", subfolder="a/delta"))
    assert {f"a/delta/{file}" for file in (FILE, CONFIG, CARD)} <= content(hub, ref="seed/1").keys()
    at = pushed(second, create_pr=True)
    assert at.pull_request == f"{hub.url}/{NAME}/discussions/1"
    assert_gives(runs[0], SparseDelta.from_pretrained(NAME))
    assert_gives(runs[1], SparseDelta.from_pretrained(NAME, revision="refs/pr/1"))
    pushed(first, revision="refs/pr/1")
    assert_gives(runs[0], SparseDelta.from_pretrained(NAME, revision="refs/pr/1"))


# ---------------------------------------------------------------------- as people call it

ONLINE = f"""
import torch
from selective_peft import SparseDelta
delta = SparseDelta.from_models({{"w": torch.zeros(9)}}, {{"w": torch.eye(3).view(-1)}})
print(delta.push_to_hub("{NAME}").url)
print(SparseDelta.from_pretrained("{NAME}").summary() == delta.summary())
"""
OFFLINE = f"""
import torch
from selective_peft import SparseDelta
delta = SparseDelta.from_pretrained("{NAME}")
print(delta.summary()["whole"] or delta.summary()["scalars"])
for call in (lambda: delta.push_to_hub("{NAME}"), lambda: SparseDelta.from_pretrained("{OWNER}/other")):
    try:
        call()
    except OSError as error:
        print(type(error).__name__, str(error))
"""


def test_the_environment_says_where_and_whether(tmp_path):
    """HF_ENDPOINT, HF_TOKEN and HF_HOME; then, with HF_HUB_OFFLINE and no Hub any more, what is in the cache."""
    settings = {"HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    plain = {name: value for name, value in os.environ.items() if not named_for_the_hub(name)}

    def lines(code, **more):
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, env=plain | settings | more, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with Hub() as hub:
        url, same = lines(ONLINE, HF_ENDPOINT=hub.url)
        assert url.startswith(f"{hub.url}/{NAME}/commit/")
        assert same == "True"
        count = len(hub.asked)
        scalars, push, other = lines(OFFLINE, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
        assert len(hub.asked) == count
    assert scalars == "3"
    assert re.match(r"OfflineModeIsEnabled .*HF_HUB_OFFLINE", push)
    assert other.startswith(
        f"FileNotFoundError source: expected {FILE} of '{OWNER}/other' from the Hub or in the cache"
    )


def test_the_page_s_functions_do_what_it_says(hub, monkeypatch):
    """The page's blocks run without a network; the functions that they define are called here."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(block, namespace)
    assert hub.asked == []
    commit = namespace["publish"](namespace["delta"])
    again = namespace["fetch"](commit)
    assert again.summary() == namespace["delta"].summary()
