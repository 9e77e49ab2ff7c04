"""What the resolvers call of transformers, in the same shape, where transformers is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

said: list[str] = []
"""How much is said of loading, call by call."""
utils = SimpleNamespace(
    logging=SimpleNamespace(
        get_verbosity=lambda: "warning",
        set_verbosity=said.append,
        set_verbosity_error=lambda: said.append("error"),
        disable_progress_bar=lambda: said.append("no bar"),
        enable_progress_bar=lambda: said.append("bar"),
    )
)


class AutoConfig:
    def __init__(self, **given: Any) -> None:
        vars(self).update({"num_labels": 2} | given)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_pretrained(cls, folder: str, *, local_files_only: bool, trust_remote_code: bool) -> AutoConfig:
        assert local_files_only
        assert not trust_remote_code
        given = json.loads((Path(folder) / "config.json").read_text())
        if "auto_map" in given:
            raise ValueError("The repository contains custom code\nwhich must be executed")
        return cls(**given)


class Body(nn.Module):
    """Embeddings, whose dropout is a layer, and attention of all to all, whose dropout is none."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout, self.config = nn.Dropout(config.hidden_dropout_prob), config
        self.register_buffer("position_ids", torch.arange(64), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        x = self.dropout(self.embedding(ids) + torch.sin(self.position_ids[: ids.shape[1]]).unsqueeze(1))
        scores = x @ x.mT
        scores = scores if mask is None else scores.masked_fill(mask.unsqueeze(1) == 0, -1e9)
        weights = functional.dropout(scores.softmax(-1), self.config.attention_probs_dropout_prob, self.training)
        return weights @ x


class Model(nn.Module):
    base_model_prefix = "bert"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.bert, self.classifier = Body(config), nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor | None]:
        return {"loss": None, "logits": self.classifier(self.pooled(self.bert(input_ids, attention_mask)))}

    def pooled(self, x: Tensor) -> Tensor:
        return x[:, 0]

    @classmethod
    def from_config(cls, config: Any, *, trust_remote_code: bool, dtype: Any, attn_implementation: str) -> Model:
        return cls(config)

    @classmethod
    def from_pretrained(cls, folder: str, *, config: Any, **how: Any) -> tuple[Model, dict[str, Any]]:
        assert how["local_files_only"]
        assert how["use_safetensors"]
        model, held = cls(config), load_file(Path(folder) / "model.safetensors")
        own = model.state_dict()
        other = [name for name in held if name in own and held[name].shape != own[name].shape]
        missing = model.load_state_dict({name: held[name] for name in held if name not in other}, strict=False)
        absent = [name for name in missing.missing_keys if name not in other]
        return model, {"missing_keys": absent, "mismatched_keys": [(name, None, None) for name in other]}


class TokenModel(Model):
    def pooled(self, x: Tensor) -> Tensor:
        return x


AutoModelForSequenceClassification = Model
AutoModelForTokenClassification = AutoModelForCausalLM = AutoModelForMaskedLM = TokenModel
AutoModelForImageClassification = Model
