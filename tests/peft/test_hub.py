"""Deltas on the Hub: what is pushed comes back bit for bit, and what cannot be had gives one clear error.

The Hub is a stand-in on loopback, huggingface_hub is the real one.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deltatests import assert_same_model, trained
from hubserver import OWNER, TOKEN, Hub
from selective_peft import DeltaError, SparseDelta
from selective_peft.delta_card import card
from selective_peft.delta_file import CARD, CONFIG, FILE

pytest.importorskip("huggingface_hub")
from huggingface_hub import constants

NAME = f"{OWNER}/delta"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "hub.md"


@pytest.fixture(scope="module")
def runs():
    """Bases, tuned models and deltas of two runs."""
    made = [trained(torch.bfloat16, seed=seed) for seed in (0, 1)]
    return [
        (base, tuned, SparseDelta.from_optimizer(optimizer, tuned, base_model="someone/base"))
        for base, tuned, optimizer in made
    ]


@pytest.fixture
def delta(runs):
    return runs[0][2]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub that HF_ENDPOINT would name, with no token saved; a request that it does not know fails the test."""
    for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with Hub() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, in compiled code
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield made
    assert made.unknown == []


def pushed(delta, name=NAME, **options):
    return delta.push_to_hub(name, **{"token": TOKEN, **options})


def content(hub, name=NAME, ref="main"):
    repository = hub.repositories[name]
    return repository.commits[repository.refs[ref]]


def saved(delta, folder, **options):
    delta.save(folder, **options)
    return (folder / FILE).read_bytes()


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


def test_a_private_repository(hub, runs):
    pushed(runs[0][2], private=True)
    assert hub.repositories[NAME].private
    assert_gives(runs[0], SparseDelta.from_pretrained(NAME, token=TOKEN))
    for token in (None, False, "hf_wrong"):
        with pytest.raises(FileNotFoundError, match=f"source: expected a folder, or a repository .*got '{NAME}'"):
            SparseDelta.from_pretrained(NAME, token=token, cache_dir=Path(constants.HF_HUB_CACHE) / "empty")
    pushed(runs[0][2], name="public")
    assert not hub.repositories[f"{OWNER}/public"].private


def test_an_existing_repository_keeps_what_else_it_has(hub, delta):
    hub.repositories.update({})
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


# ---------------------------------------------------------------------- what is on this disk


def test_a_folder_or_a_file_needs_no_hub(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    runs[0][2].save(tmp_path / "run" / "delta")
    for source in (tmp_path / "run" / "delta", str(tmp_path / "run" / "delta"), tmp_path / "run" / "delta" / FILE):
        assert_gives(runs[0], SparseDelta.from_pretrained(source))
    assert_gives(runs[0], SparseDelta.from_pretrained(tmp_path / "run", subfolder="delta"))
    monkeypatch.chdir(tmp_path)
    assert_gives(runs[0], SparseDelta.from_pretrained("run/delta"))  # not the repository of that name


def test_a_folder_that_does_not_do(delta, tmp_path):
    delta.save(tmp_path / "delta")
    with pytest.raises(FileNotFoundError, match=f"source: expected a folder with {FILE} in it, got '{tmp_path}'"):
        SparseDelta.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"expected a folder with {FILE} in it, got '.*nothing'"):
        SparseDelta.from_pretrained(tmp_path, subfolder="nothing")
    with pytest.raises(ValueError, match="revision: expected none for what is on this disk, got 'main'"):
        SparseDelta.from_pretrained(tmp_path / "delta", revision="main")
    for missing in (tmp_path / "missing", "./missing", "missing", "a/b/c", Path("some/where"), ""):
        if missing != "":
            with pytest.raises(FileNotFoundError, match="source: expected a folder that is there, or a repository"):
                SparseDelta.from_pretrained(missing)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["a/b/c", "", "some one/x", "-x", "a/b--c", "a/../b", "x.git"])
def test_names_that_are_none(hub, delta, name):
    with pytest.raises(ValueError, match=f"repo_id: expected a repository such as 'user/name', got {name!r}"):
        pushed(delta, name=name)
    assert hub.asked == []


@pytest.mark.parametrize("folder", ["..", "a/../../b", "/a", "a\\..\\b"])
def test_folders_that_are_outside(hub, delta, folder):
    for call in (lambda: pushed(delta, subfolder=folder), lambda: SparseDelta.from_pretrained(NAME, subfolder=folder)):
        with pytest.raises(ValueError, match="subfolder: expected a folder within the repository"):
            call()
    assert hub.asked == []


@pytest.mark.parametrize(("token", "given"), [("hf_wrong", "none, or one that may not"), (False, "none")])
def test_a_token_that_may_not_write(hub, delta, token, given):
    with pytest.raises(
        PermissionError, match=rf"token: expected one that may write to '{NAME}', got {given} \("
    ) as caught:
        pushed(delta, token=token)
    assert "hf_wrong" not in str(caught.value)
    assert hub.repositories == {}
    pushed(delta)
    hub.locked.add(NAME)
    with pytest.raises(PermissionError, match="token: expected one that may write"):
        pushed(delta, originals=False)


def test_what_is_not_there(hub, delta):
    pushed(delta, subfolder="delta")
    with pytest.raises(FileNotFoundError, match="source: expected a folder, or a repository .*, got 'someone/other'"):
        SparseDelta.from_pretrained("someone/other", token=TOKEN)
    for revision in ("v2", "0" * 40):
        with pytest.raises(
            FileNotFoundError, match=f"revision: expected a branch, a tag or a commit of '{NAME}', got '{revision}'"
        ):
            SparseDelta.from_pretrained(NAME, revision=revision, subfolder="delta")
    with pytest.raises(
        FileNotFoundError, match=rf"expected a repository with {FILE} in it, got '{NAME}' \(revision 'main'\)"
    ):
        SparseDelta.from_pretrained(NAME)
    with pytest.raises(FileNotFoundError, match=f"expected a repository with other/{FILE} in it"):
        SparseDelta.from_pretrained(NAME, subfolder="other")
    hub.gated.add(NAME)
    with pytest.raises(PermissionError, match=f"token: expected one that may read '{NAME}', which is gated"):
        SparseDelta.from_pretrained(NAME, subfolder="delta")
    with pytest.raises(ValueError, match="source: expected a repository such as 'user/name', got 'a/b--c'"):
        SparseDelta.from_pretrained("a/b--c")


def test_another_server_than_a_hub(hub, delta):
    with pytest.raises(FileNotFoundError, match=f"source: expected {FILE} of '{NAME}' from the Hub or in the cache"):
        SparseDelta.from_pretrained(NAME, endpoint=f"{hub.store}/{'0' * 64}")
    hub.unknown.clear()


def flipped(place):
    def damage(data):
        at = int(place * len(data))
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *map(flipped, (0.0, 0.01, 0.2, 0.5, 0.7, 0.9, 0.999)),
        lambda data: b"\x80\x04\x95" + data[3:],  # a pickle's first bytes
        lambda data: b"<html>".ljust(len(data)),
        lambda data: bytes(len(data)),
    ],
)
def test_damaged_content_is_refused(hub, delta, damage):
    pushed(delta)
    hub.damage = damage
    with pytest.raises(DeltaError, match=rf"models--someone--delta.*{FILE}: ") as caught:
        SparseDelta.from_pretrained(NAME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", bytes(8), b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_was_never_a_delta_is_refused(hub, delta, content):
    pushed(delta)
    hub.repositories[NAME].commit("main", {FILE: content})
    with pytest.raises(DeltaError, match=FILE):
        SparseDelta.from_pretrained(NAME)


def test_half_a_file_is_refused_and_not_kept(hub, runs):
    pushed(runs[0][2])
    whole = hub.damage
    hub.damage = lambda data: data[:-64]
    with pytest.raises(OSError, match="size"):
        SparseDelta.from_pretrained(NAME)
    hub.damage = whole
    assert_gives(runs[0], SparseDelta.from_pretrained(NAME))


def test_a_delta_that_no_file_can_hold_leaves_the_hub_alone(hub):
    ones = torch.ones(8)
    base = {"a": torch.zeros(8), "a.original": torch.zeros(8)}
    with pytest.raises(DeltaError, match="would stand there twice"):
        pushed(SparseDelta.from_models(base, {"a": ones, "a.original": ones}))
    assert hub.asked == []


def test_without_the_library(delta, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call, name in (
        (lambda: delta.push_to_hub(NAME), "push_to_hub"),
        (lambda: SparseDelta.from_pretrained(NAME), "from_pretrained"),
    ):
        with pytest.raises(ImportError, match=rf"{name} needs huggingface_hub .*pip install 'selective-kernels\[hub\]'"):
            call()


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
    plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}

    def lines(code, **more):
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, env=plain | settings | more, capture_output=True, text=True, check=True, timeout=120)
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
    assert re.match(rf"FileNotFoundError source: expected {FILE} of '{OWNER}/other' from the Hub or in the cache", other)


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
