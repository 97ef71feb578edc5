"""What a delta remembers besides values: which base, made how."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selective_peft.container import json_object
from selective_peft.errors import DeltaError


@dataclass(frozen=True)
class About:
    """Where a delta comes from; all of it is JSON.

    Attributes:
        base_model: name of the model it changes: on the Hub, or of its folder; "" if unknown.
        base_revision: commit or branch of it, "" if unknown.
        method: "id3" and so on; "diff" for a comparison of two models, "compose" for several deltas.
        hyperparameters: how it was trained.
        model_config: the configuration of the changed model (of transformers), for `merge`; None if it has none.
    """

    base_model: str = ""
    base_revision: str = ""
    method: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    model_config: Mapping[str, Any] | None = None

    def to_metadata(self) -> dict[str, str]:
        """As strings by name."""
        return {
            "base_model": self.base_model,
            "base_revision": self.base_revision,
            "method": self.method,
            "hyperparameters": to_json(plain(self.hyperparameters)),
            "model_config": to_json(plain(self.model_config)) if self.model_config is not None else "",
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> About:
        """What `to_metadata` gave.

        Raises:
            DeltaError: something is missing, or no JSON.
        """
        missing = sorted({"base_model", "base_revision", "method", "hyperparameters", "model_config"} - set(metadata))
        if missing:
            raise DeltaError(f"metadata: expected the items {missing}, which are missing")
        config = metadata["model_config"]
        return cls(
            metadata["base_model"],
            metadata["base_revision"],
            metadata["method"],
            json_object(metadata["hyperparameters"], "metadata: hyperparameters"),
            json_object(config, "metadata: model_config") if config else None,
        )


def to_json(value: Any) -> str:
    """Compact JSON; equal values give equal text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """What JSON can hold: tensors of one number become it; dtypes, inf, NaN and what is left become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value if value is None or isinstance(value, bool | int | float) else _unicode(str(value))


def _unicode(text: str) -> str:
    """Text that can be encoded: in names of files, any byte may stand as half a surrogate."""
    return text.encode(errors="replace").decode()


def describe_model(model: nn.Module, base_model: str | None, base_revision: str | None) -> dict[str, Any]:
    """`base_model`, `base_revision` and `model_config` of a model; what is not given comes from its `config`.

    A model that was loaded from a folder is called as that folder is, see `public_name`; a name that is given is kept.
    """
    config = getattr(model, "config", None)
    as_json = getattr(config, "to_json_string", None)
    described = json.loads(as_json()) if as_json is not None else None
    if described is not None:
        described.pop("_name_or_path", None)
        if not hasattr(model, "peft_config"):  # else this class is PEFT's
            described["architectures"] = [type(model).__name__]
            param = next(model.parameters(), None)  # both as save_pretrained has them, whether it was called or not
            described["dtype"] = None if param is None else str(param.dtype).removeprefix("torch.")
    name = public_name(getattr(config, "_name_or_path", "") or "") if base_model is None else base_model
    revision = getattr(config, "_commit_hash", "") if base_revision is None else base_revision
    return {"base_model": name, "base_revision": revision or "", "model_config": described}


def public_name(model: str) -> str:
    """What a model is called in files that people publish: a name on the Hub as it is, of a folder only its own name.

    Where a folder lies on somebody's disk helps nobody else, and says things about them.
    """
    folder = Path(model)
    name = Path(os.path.abspath(folder)).name if model and (folder.is_absolute() or folder.is_dir()) else model
    return _unicode(name)
