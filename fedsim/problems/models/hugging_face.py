"""Models of transformers from a local folder: `hf:./bert-tiny`, with config.json and model.safetensors in it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from fedsim.core.errors import InputError, shortened, warn
from fedsim.core.extras import library
from fedsim.core.files import expanded, look
from fedsim.core.options import NonNegativeInt, options
from fedsim.core.signatures import plain
from fedsim.nets.heads import Taken
from fedsim.problems.models.layers import starts_as_made
from fedsim.problems.models.libraries import OfLibrary, construct, only_models, options_of

Task = Literal["sequence_classification", "token_classification", "causal_lm", "masked_lm", "image_classification"]
MADE_BY: Mapping[Task, str] = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "image_classification": "AutoModelForImageClassification",
}
OURS = frozenset({"num_labels", "use_cache", "return_dict", "dtype", "pad_token_id", "task", "pretrained", "padding"})
"""What of a configuration follows the data or the run, or is an option of ours."""
OFFLINE: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class Masked:
    """A hook that tells a model which tokens [B, T] are no padding, as its attention mask."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(
        self,
        module: nn.Module,  # noqa: ARG002
        given: tuple[Any, ...],
        named: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a forward pass, with a mask."""
        return given, named | {"attention_mask": (given[0] != self.padding).long()}


@options
class HuggingFace(OfLibrary):
    """A model of transformers from a folder of this machine, for what is to be predicted.

    The keys of its config.json are options, which stand in for the folder's own. Outputs are its logits. Dropout of
    attention weights, and of whole layers, is off unless it is given: it would read the global generator. Nothing is
    downloaded, and no code of the folder is run.
    """

    task: Task | None = None
    """What is predicted, by the names of its AutoModelFor... Not given: image_classification of images, and
    sequence_classification of tokens.
    """
    pretrained: bool = True
    """Start from the folder's model.safetensors; else from weights that transformers draws for its config.json."""
    padding: NonNegativeInt | None = None
    """The token that fills sequences up, which attention leaves out. Not given: all tokens count."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """Tokens [B, T], or images [B, channels, height, width], to [B, outputs]; of tokens [B, T, outputs]."""
        task = self.task or ("sequence_classification" if len(shape) == 1 else "image_classification")
        if (len(shape) == 1) != (task != "image_classification") or (len(shape) == 1 and not vocabulary):
            held = f"inputs are {'tokens' if vocabulary else 'numbers'} of the shape {list(shape)}"
            raise InputError("model.task", task, f"{held}; tokens have the shape [T], images [channels, height, width]")
        transformers = library("transformers", "hf", self.kind, "model")
        with _quiet(transformers):
            config = self._config(transformers, outputs)
            make = getattr(transformers, MADE_BY[task])
            module = construct(functools.partial(self._made, make, config), self.kind, self.given)
        module.register_forward_hook(Taken(("logits",)))
        if self.padding is not None:
            module.register_forward_pre_hook(Masked(self.padding), with_kwargs=True)
        return starts_as_made(module)

    def _config(self, transformers: ModuleType, outputs: int) -> Any:
        """The folder's configuration, with what is given in its place."""
        config = _configuration(transformers, Path(self.called), self.kind, "model")
        off = [name for name, value in config.to_dict().items() if _drops_weights(name) and value]
        off = [name for name in off if name not in self.given]
        given = dict.fromkeys(off, 0.0) | self.given
        given |= {"num_labels": outputs, "use_cache": False, "return_dict": True, "pad_token_id": self.padding}
        for name, value in given.items():
            setattr(config, name, value)
        if off:
            warn(f"{self.kind}: {' and '.join(off)} of config.json would read the global generator, and is 0 here")
        return config

    def _made(self, make: Any, config: Any, **given: Any) -> nn.Module:  # noqa: ARG002
        how: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
        if not self.pretrained:
            made: nn.Module = make.from_config(config, trust_remote_code=False, **how)
            return made
        module, told = make.from_pretrained(
            self.called,
            config=config,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **OFFLINE,
            **how,
        )
        loaded: nn.Module = module
        fresh = sorted({*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])})
        body = f"{getattr(module, 'base_model_prefix', '')}."
        absent = [name for name in fresh if name.startswith(body) and ".pooler." not in name]
        if absent:
            shown = shortened(", ".join(absent[:4]))
            raise InputError("model", self.kind, f"its model.safetensors is of another model, without {shown}")
        if fresh:
            warn(f"{self.kind}: {', '.join(fresh)} start as transformers draws them")
        return loaded


def hugging_face_model(group: str, kind: str, option: str) -> type[Any]:
    """The resolver of the prefix `hf`: the class of options of a model in a folder.

    InputError: transformers is not installed, or there is no such folder, or none of a model.
    """
    name = only_models(group, kind, option)
    folder = expanded(name, option)
    for path in (folder, folder / "config.json"):
        if look(path, option) is None:
            raise InputError(option, kind, f"there is no {path}; nothing is downloaded: save the model there before")
    changed = (folder / "config.json").stat().st_mtime_ns
    return _options_of(folder.resolve(), changed, kind, option)


@functools.cache
def _options_of(folder: Path, changed: int, kind: str, option: str) -> type[Any]:  # noqa: ARG001  # names the version
    transformers = library("transformers", "hf", kind, option)
    with _quiet(transformers):
        config = _configuration(transformers, folder, kind, option)
    taken = {name: (type(value), value) for name, value in config.to_dict().items() if plain(type(value))}
    return options_of(HuggingFace, str(folder), kind, taken, OURS)


def _configuration(transformers: ModuleType, folder: Path, kind: str, option: str) -> Any:
    """What config.json says. InputError: it cannot be read, or wants code of its own."""
    try:
        return transformers.AutoConfig.from_pretrained(str(folder), **OFFLINE)
    except Exception as error:  # of whatever kind is in the reading of what somebody has written
        line = shortened(" ".join(str(error).split()))
        raise InputError(option, kind, f"its config.json is none of transformers: {line}") from error


def _drops_weights(name: str) -> bool:
    """Whether a key is about a dropout that is no layer: of attention weights, or of whole layers."""
    return "drop" in name and ("att" in name or "layerdrop" in name)


@contextlib.contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Keep what transformers says of loading from the terminal; what matters of it is told in a line of ours."""
    logs = transformers.utils.logging
    before = logs.get_verbosity()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(before)
        logs.enable_progress_bar()
