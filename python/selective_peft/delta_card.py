"""What stands beside a delta's file: its configuration, and a model card for the Hub."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from selective_peft.about import About, plain
from selective_peft.changes import Change

LIBRARY = "selective-kernels"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner and model; folders are called by one name


def config(metadata: Mapping[str, str], about: About) -> str:
    """`selective_config.json`: what the metadata say, readable; nothing reads it back."""
    known = ("format", "version", "encoding", "fingerprint", "created_by")
    content: dict[str, Any] = {
        **{name: metadata[name] for name in known},
        "scalars": int(metadata["scalars"]),
        "base_model_name_or_path": about.base_model,
        "base_model_revision": about.base_revision,
        "method": about.method,
        "hyperparameters": plain(about.hyperparameters),
        "model_config": plain(about.model_config),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def front_matter(library: str, base_model: str, tags: Sequence[str]) -> list[str]:
    """The lines that the Hub reads of a card; the base only if it may be there."""
    base = [f"base_model: {base_model}", "base_model_relation: adapter"] if HUB_NAME.fullmatch(base_model) else []
    return ["---", f"library_name: {library}", *base, "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def code(text: str) -> str:
    """Text of a file as one piece of code in a card, whatever it is: it may come from somebody else."""
    return f"`{' '.join(text.replace('`', ' ').split())}`"


def based_on(about: About) -> str:
    """What a card calls the base."""
    return code(about.base_model) if about.base_model else "its base model"


def card(changes: Mapping[str, Change], about: About, repo_id: str = "", subfolder: str = "") -> str:
    """`README.md`, with the front matter that the Hub reads; in a repository, it says how to load it from there."""
    sparse = [change for change in changes.values() if not change.is_whole]
    whole = sorted(name for name, change in changes.items() if change.is_whole)
    count, total = sum(change.scalars for change in sparse), sum(change.numel for change in sparse)
    share = f" ({100 * count / total:.3g} % of the {total:,} scalars in {len(sparse):,} tensors)" if total else ""
    tags = ["selective-kernels", "sparse-delta", *([about.method] if re.fullmatch(r"[a-z0-9-]+", about.method) else [])]
    base = based_on(about)
    if about.base_revision:
        base += f" (revision {code(about.base_revision)})"
    lines = [
        *front_matter(LIBRARY, about.base_model, tags),
        "# Sparse delta",
        "",
        f"What fine-tuning by {code(about.method)} changed of {base}:",
    ]
    lines += ["", f"- single scalars: {count:,}{share}"]
    if whole:
        lines.append(f"- whole tensors: {', '.join(map(code, whole))}")
    lines += ["", "Put into the base, it gives the tuned model, bit for bit; it can be taken out again.", ""]
    lines += [
        "```python",
        "from selective_peft import SparseDelta",
        "",
        f"delta = {_loading(repo_id, subfolder)}",
    ]
    lines += ["delta.apply_(model)   # the base model", "delta.revert_(model)  # and back", "```", ""]
    lines.append("```sh")
    if repo_id:
        lines.append(f"hf download {repo_id} --local-dir THIS")
    delta = shlex.quote(f"THIS/{subfolder}") if subfolder else "THIS"
    lines += [f"selective-peft merge --base BASE --delta {delta} --out TUNED", "```", ""]
    return "\n".join(lines)


def _loading(repo_id: str, subfolder: str) -> str:
    if not repo_id:
        return 'SparseDelta.load("path/to/this/folder")'
    given = [json.dumps(repo_id), *([f"subfolder={json.dumps(subfolder)}"] if subfolder else [])]
    return f"SparseDelta.from_pretrained({', '.join(given)})"
