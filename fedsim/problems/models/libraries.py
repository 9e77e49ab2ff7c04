"""Models of libraries: what `torchvision:...`, `timm:...` and `hf:...` have in common.

A kind names a constructor of the library. Its arguments are options, as far as a file can give them, and those that are
not given are the library's own. Nothing is ever downloaded: weights are files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn

from fedsim.core.errors import InputError, named_line, one_line
from fedsim.core.options import options
from fedsim.core.plugins import KIND
from fedsim.core.signatures import plain

Arguments = Mapping[str, tuple[Any, Any]]
"""Types and defaults of arguments, by name."""


def only_models(group: str, kind: str, option: str) -> str:
    """What a kind of a library's names behind the prefix. InputError: it is asked for in another group."""
    prefix, _, name = kind.partition(":")
    if group != "models":
        raise InputError(option, kind, f"of {prefix} there are only models; name one of the {group}")
    return name


class OfLibrary:
    """Base of options that are passed on to a library's constructor. called: the name of that."""

    called: ClassVar[str]
    passed: ClassVar[tuple[str, ...]]

    @property
    def kind(self) -> str:
        """What a table calls it."""
        return str(getattr(self, KIND))

    @property
    def given(self) -> dict[str, Any]:
        """The constructor's arguments that are given."""
        values = {name: getattr(self, name) for name in self.passed}
        return {name: value for name, value in values.items() if value is not None}


def options_of(base: type[Any], name: str, kind: str, taken: Arguments, left_out: frozenset[str]) -> type[Any]:
    """The class of options of a library's model: those of `base`, and the arguments of its constructor.

    An argument that is not given is None here, whatever the library makes of it. left_out: arguments that are no
    options.
    """
    types: dict[str, Any] = {}
    for argument, (annotation, _) in taken.items():
        if argument not in left_out and argument.isidentifier() and not argument.startswith("_"):
            types[argument] = annotation | None if plain(annotation) else Any
    body: dict[str, Any] = {"__annotations__": types, "__doc__": base.__doc__, "__module__": base.__module__}
    body |= dict.fromkeys(types) | {"called": name, "passed": tuple(types), KIND: kind}
    made: type[Any] = options(type(base.__name__, (base,), body))
    return made


def construct(
    make: Callable[..., Any], kind: str, given: Mapping[str, Any], during: AbstractContextManager[Any] | None = None
) -> nn.Module:
    """The module that a library's constructor makes of these arguments. InputError: it refuses them."""
    try:
        with during or nullcontext():
            module = make(**given)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # of whatever kind a library has for arguments that it cannot use
        shown = ", ".join(f"{name} = {value!r}" for name, value in given.items() if value is not None)
        raise InputError("model", kind, f"{one_line(named_line(error), 200)} (made with {shown})") from error
    if not isinstance(module, nn.Module):
        raise InputError("model", kind, f"makes a {type(module).__name__}, no torch.nn.Module")
    return module


class Coloured:
    """A hook that gives grey images [B, 1, H, W] to a model of three channels, the same in each."""

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Images with three channels."""
        images, *others = given
        return images.expand(-1, 3, -1, -1), *others
