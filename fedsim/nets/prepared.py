"""A model as it is simulated: with layers that draw by name, and with normalisation that knows whose a batch is."""

from __future__ import annotations

import copy

from torch import nn

from fedsim.core.errors import InputError, named_line
from fedsim.core.memory import no_room
from fedsim.nets import attention, recurrence
from fedsim.nets.dropout import NamedDropout
from fedsim.nets.normalisation import BatchNorm, Statistics


def prepare(model: nn.Module, statistics: Statistics | None = None) -> nn.Module:
    """A copy of `model` that draws by name; what cannot be simulated exactly is refused with a remedy.

    statistics: what becomes of those of batch normalisation (see `fedsim.nets.normalisation`); None: they are averaged,
    or as they are in a model that was prepared before.
    """
    try:
        model = copy.deepcopy(model)
    except Exception as error:  # of whatever kind is in the copying of what somebody has put into a module
        if no_room(error):
            raise
        raise InputError("problem.model", type(model).__name__, f"cannot be copied: {named_line(error)}") from error
    made: dict[int, nn.Module] = {}  # one for each layer, however often it stands in the model
    for name, part in list(model.named_modules(remove_duplicate=False)):
        if isinstance(part, nn.Dropout):
            made.setdefault(id(part), NamedDropout(part.p, name, part.inplace))
        elif isinstance(part, nn.modules.batchnorm._NormBase):
            made.setdefault(id(part), BatchNorm.of(part, name))
        elif attention.take_over(part) or (_drops_inside(part) and recurrence.take_over(part)):
            share = getattr(part, "dropout", None)
            if isinstance(share, int | float):  # of an encoder layer it is a part of its own
                part.register_module("drop", NamedDropout(share, name) if share > 0 else None)
                part.dropout = 0.0
        elif isinstance(part, nn.modules.dropout._DropoutNd) or _drops_inside(part):
            raise InputError(
                "problem.model",
                f"{type(part).__name__} ({name})",
                "this dropout reads the global generator; use torch.nn.Dropout between the layers instead",
            )
        if id(part) in made and name:
            model.set_submodule(name, made[id(part)])
        elif id(part) in made:
            model = made[id(part)]
    for part in model.modules():
        if isinstance(part, BatchNorm) and statistics is not None:
            part.become(statistics)
    return model


def _drops_inside(part: nn.Module) -> bool:
    """Whether a recurrent layer, say, drops out on its own."""
    share = getattr(part, "dropout", 0.0)
    return isinstance(share, int | float) and share > 0
