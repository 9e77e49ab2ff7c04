"""Selections of a model's parameters: words and names, and the leaves of its layout that they stand for.

`all`         every leaf.
`head`        those of the last layer that has parameters; `body`: those of all others.
`norm`        those of layers that normalise, by the layer's type.
`statistics`  the running ones of batch normalisation.

Any other text is the name of a parameter, or of a layer with all that is in it; * in it stands for anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import BeforeValidator
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.near import meant
from fedsim.core.options import Texts
from fedsim.nets.normalisation import BatchNorm
from fedsim.nets.stack import Layout

NORMS = (BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Layers that normalise what passes through them, as they are in a prepared model."""
WORDS = ("all", "body", "head", "norm")
"""Words of what is trained; of all others each is a name."""
ABSENT = {
    "norm": "the model has no layer that normalises; remove it",
    "statistics": "the model has no batch normalisation; remove it",
    "body": "the model has one layer with parameters, and that is its head; remove it",
}
"""Why words that stand for leaves of some models are refused for another."""


def hold_selection(given: object) -> object:
    """A selection as it was given. InputError, of no option: it is none."""
    inner = given["not"] if isinstance(given, Mapping) and set(given) == {"not"} else given
    names = (inner,) if isinstance(inner, str) else inner
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(
            "", given, 'give a word or a name, as "body", several, as ["0", "2.bias"], or { not = "head" }'
        )
    return given


Selection = Annotated[str | Texts | dict[Literal["not"], str | Texts], BeforeValidator(hold_selection)]
"""Of what is trained, as options have it: a word or a name, several, or `{ not = ... }`, all but these."""


def written(selection: Selection) -> str | list[str] | dict[str, str | list[str]]:
    """A selection as a file has it, for what is said of it."""
    if isinstance(selection, Mapping):
        return {"not": _listed(selection["not"])}
    return _listed(selection)


def leaves_of(named: Iterable[str], module: nn.Module, layout: Layout, option: str) -> set[str]:
    """The leaves that words and names stand for. InputError, of that option: one stands for none of this model."""
    found = set[str]()
    for name in named:
        own = _leaves(name, module, layout)
        if not own:
            unknown = f"is no parameter of this model, which has {_some(layout.names)}, and none of {', '.join(WORDS)}"
            layers = {leaf.rpartition(".")[0] for leaf in layout.names}
            unknown += meant(name, [*WORDS, *layout.names, *sorted(layers)])
            raise InputError(option, name, ABSENT.get(name, unknown))
        found |= own
    return found


def selected(selection: Selection, module: nn.Module, layout: Layout, option: str) -> set[str]:
    """The leaves, of those that are trained, that a selection stands for.

    InputError, of that option: it is no selection, or one of its names stands for none of them. What becomes of running
    statistics is said of normalisation.
    """
    try:
        hold_selection(selection)
    except InputError as error:
        raise InputError(option, error.value, error.remedy) from None
    apart = selection["not"] if isinstance(selection, Mapping) else None
    given = selection if apart is None else apart
    named = (given,) if isinstance(given, str) else tuple(given)
    trained = set(layout.names[: layout.trained])
    for name in named:
        if trained.isdisjoint(leaves_of([name], module, layout, option)):
            remedy = "is of running statistics, of which problem.normalisation says what becomes; remove it"
            raise InputError(option, name, remedy)
    found = leaves_of(named, module, layout, option) & trained
    return found if apart is None else trained - found


def _leaves(name: str, module: nn.Module, layout: Layout) -> set[str]:
    """The leaves that a word or a name stands for."""
    owner = {leaf: leaf.rpartition(".")[0] for leaf in layout.names}
    last = owner[layout.names[layout.trained - 1]]
    if name == "all":
        return set(layout.names)
    if name == "norm":
        return {leaf for leaf in layout.names if isinstance(module.get_submodule(owner[leaf]), NORMS)}
    if name == "statistics":
        return set(layout.names[layout.trained :])
    if name in ("head", "body"):
        return {leaf for leaf in layout.names if (owner[leaf] == last) == (name == "head")}
    return {leaf for leaf in layout.names if fnmatchcase(leaf, name) or fnmatchcase(leaf, f"{name}.*")}


def _listed(names: str | tuple[str, ...]) -> str | list[str]:
    return names if isinstance(names, str) else list(names)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
