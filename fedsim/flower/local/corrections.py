"""What SCAFFOLD, FedDyn and FedProx add to the gradient of each local step of a Flower client app.

scaffold: grad f_i(y) + c - c_i;  c_i+ = c_i - c + (theta - y) / (K lr)
feddyn: grad f_i(y) + alpha (y - theta) - L_i;  L_i <- L_i - alpha (y - theta)
proximal: grad f_i(y) + mu (y - theta)
theta is the model in the message, y the model in training, K the number of steps; the arithmetic is that of
`clients/scaffold.py`, `clients/feddyn.py` and `clients/sgd.py`. Gradients are corrected before the step: to correct a
model after its steps is another method, for a step depends on those before it. Under a gradient scaler, correct what
it has unscaled. A model is a module, or its parameters by the names that were sent, where it is wrapped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message

from fedsim.core.errors import InputError
from fedsim.flower.local.models import Arrays, Model, Parameters, Sent, floats, record_of, remembered, setting, widened
from fedsim.flower.names import ALPHA, CONTROL, CONTROL_DELTA, MU

if TYPE_CHECKING:
    from torch import nn, optim

OWN_CONTROL, OWN_GRADIENT = "fedsim.local.scaffold", "fedsim.local.feddyn"
"""Where in the context's state a client keeps its c_i, and its L_i."""


class _Correction(ABC):
    """What is added to gradients. held: of each corrected array, what the rule needs, in single precision at least."""

    def __init__(self, sent: Sent, held: dict[str, tuple[Any, ...]]) -> None:
        self._sent, self._held = sent, held
        self._placed: dict[str, tuple[Any, ...]] = {}
        self._used = False

    @abstractmethod
    def _added(self, y: Any, *held: Any) -> Any:
        """What is added to the gradient of one array y; arrays in, an array out, or tensors in, a tensor out."""

    def _correct(self, model: Parameters) -> dict[str, nn.Parameter]:
        """Add it to the gradients of a module; the parameters whose gradients these are."""
        import torch

        self._used, found = True, {}
        for name, parameter, gradient in self._sent.with_gradients(model):
            if name not in self._held:
                continue
            held = self._placed.get(name)
            if held is None or held[0].device != parameter.device:
                held = tuple(torch.from_numpy(array).to(parameter.device) for array in self._held[name])
                self._placed[name] = held
            gradient.add_(self._added(parameter.detach().to(held[0].dtype), *held))
            found[name] = parameter
        return found


class Scaffold(_Correction):
    """SCAFFOLD's control variates in local SGD, as `scaffold` makes it."""

    def __init__(self, sent: Sent, control: Arrays, own: Arrays, context: Context) -> None:
        super().__init__(sent, {name: (control[name] - own[name],) for name in control})
        self._control, self._own, self._context = control, own, context
        self._way: dict[str, float] = {}

    def _added(self, y: Any, *held: Any) -> Any:  # noqa: ARG002
        return held[0]

    def correction(self) -> Arrays:
        """By name c - c_i, the same in all steps: for loops that add it themselves, and tell `finish` lr and steps."""
        return {name: shift.copy() for name, (shift,) in self._held.items()}

    def correct(self, model: Parameters, optimizer: optim.Optimizer) -> None:
        """Add c - c_i to the gradients, between `loss.backward()` and `optimizer.step()`, and count the step.

        InputError: the optimizer is not plain SGD, for which alone c_i+ is a mean of gradients.
        """
        rates = _rates(optimizer)
        for name, parameter in self._correct(model).items():
            self._way[name] = self._way.get(name, 0.0) + rates.get(id(parameter), 0.0)

    def finish(self, model: Model, *, lr: float | None = None, steps: int | None = None) -> dict[str, ArrayRecord]:
        """Remember c_i+, and give the record `control-delta`, c_i+ - c_i, to put beside the others of the reply.

        lr, steps: what loops made that added `correction` themselves; with a schedule, lr is the mean over the steps.
        What made no step, or steps of rate 0, keeps its c_i. Of a model that is not finite nothing is remembered.
        """
        y, renewed = self._sent.trained(model), dict(self._own)
        for name, way in self._ways(y, lr, steps).items():
            if way:
                c = self._control[name]
                theta, trained = (array.astype(c.dtype) for array in (self._sent.floats[name], y[name]))
                renewed[name] = np.asarray(self._own[name] - c + (theta - trained) / way)
        if all(np.isfinite(array).all() for array in renewed.values()):
            self._context.state[OWN_CONTROL] = record_of(renewed)
        return {CONTROL_DELTA: record_of({name: np.asarray(c_i - self._own[name]) for name, c_i in renewed.items()})}

    def _ways(self, y: Arrays, lr: float | None, steps: int | None) -> dict[str, float]:
        """The sum of the rates of the steps of each array."""
        if self._way:
            if lr is not None or steps is not None:
                raise InputError("lr", lr, "correct has counted the steps; leave lr and steps out")
            return self._way
        if lr is None or steps is None:
            if self._sent.moved(y):
                raise InputError("lr", lr, "say lr and steps, or have correct(model, optimizer) count them")
            return {}
        if not (lr >= 0.0 and steps >= 0 and np.isfinite(lr * steps)):
            raise InputError("lr", lr, f"with steps = {steps} it is no way; neither may be negative")
        return dict.fromkeys(y.keys() & self._own.keys(), lr * steps)


class _Penalty(_Correction):
    """A correction that depends on where the model is. Any optimizer will do."""

    def correction(self, model: Model) -> Arrays:
        """What is added to the gradients at a model y, by name: for loops that add it themselves."""
        self._used = True
        y = self._sent.trained(model)
        return {name: np.asarray(self._added(y[name], *held)) for name, held in self._held.items() if name in y}

    def correct(self, model: Parameters) -> None:
        """Add it to the gradients, between `loss.backward()` and `optimizer.step()`."""
        self._correct(model)


class FedDyn(_Penalty):
    """FedDyn's dynamic regulariser in a client's training, as `feddyn` makes it."""

    def __init__(self, sent: Sent, alpha: float, own: Arrays, context: Context) -> None:
        super().__init__(sent, {name: (widened(theta), own[name]) for name, theta in sent.floats.items()})
        self._alpha, self._context = alpha, context

    def _added(self, y: Any, *held: Any) -> Any:
        theta, own = held
        return self._alpha * (y - theta) - own

    def finish(self, model: Model) -> dict[str, float]:
        """Remember L_i - alpha (y - theta), and give the metric that tells the server that this has been done.

        Of a model that is not finite nothing is remembered. InputError: it was trained, and no step was corrected.
        """
        y, renewed = self._sent.trained(model), {name: own for name, (_, own) in self._held.items()}
        if not self._used and self._sent.moved(y):
            raise InputError("model", "was trained", "and no step was corrected; call correct before each step")
        for name, trained in y.items():
            theta, own = self._held[name]
            renewed[name] = np.asarray(own - self._alpha * (trained.astype(own.dtype) - theta))
        if all(np.isfinite(array).all() for array in renewed.values()):
            self._context.state[OWN_GRADIENT] = record_of(renewed)
        return {ALPHA: self._alpha}


class Proximal(_Penalty):
    """FedProx's penalty in a client's training, as `proximal` makes it. mu: its factor; 0: none."""

    def __init__(self, sent: Sent, mu: float) -> None:
        super().__init__(sent, {name: (widened(theta),) for name, theta in sent.floats.items()})
        self.mu = mu

    def _added(self, y: Any, *held: Any) -> Any:
        return self.mu * (y - held[0])


def scaffold(message: Message, context: Context) -> Scaffold:
    """SCAFFOLD's part in a client app: the server's c is in the message, the client's c_i in the context's state.

    In single precision at least. What c leaves out, such as arrays that the server freezes, is not corrected.
    InputError: the message has no control variate, or it does not fit the model.
    """
    record = message.content.array_records.get(CONTROL)
    if record is None:
        raise InputError(CONTROL, "(nothing)", "the server sends no control variate; take its strategy scaffold")
    sent, control = Sent(message, beside={CONTROL}), {name: widened(array) for name, array in floats(record).items()}
    for name, array in control.items():
        if name not in sent.floats or array.shape != sent.floats[name].shape:
            raise InputError(CONTROL, f"{name} {array.shape}", "does not fit the model that was sent with it")
    return Scaffold(sent, control, remembered(context, OWN_CONTROL, control), context)


def feddyn(message: Message, context: Context) -> FedDyn:
    """FedDyn's part in a client app: alpha is in the message, the client's L_i in the context's state.

    In single precision at least. InputError: the message has no alpha.
    """
    alpha = setting(message, ALPHA)
    if alpha is None:
        raise InputError(ALPHA, "(nothing)", "the server sends none; take its strategy feddyn")
    sent = Sent(message)
    like = {name: widened(theta) for name, theta in sent.floats.items()}
    return FedDyn(sent, alpha, remembered(context, OWN_GRADIENT, like), context)


def proximal(message: Message) -> Proximal:
    """FedProx's part in a client app: `proximal-mu` is in the message, as Flower's FedProx sends it, too; else 0."""
    return Proximal(Sent(message), setting(message, MU) or 0.0)


def _rates(optimizer: optim.Optimizer) -> dict[int, float]:
    """The rate of each parameter, by its identity. InputError: its step is not the rate times the gradient."""
    import torch

    kind = type(optimizer)
    if not issubclass(kind, torch.optim.SGD):
        raise InputError("optimizer", kind.__name__, "SCAFFOLD's control variates need torch.optim.SGD")
    for group in optimizer.param_groups:
        for name in ("momentum", "weight_decay", "maximize"):
            if group[name]:
                raise InputError(name, group[name], "SCAFFOLD's control variates need plain SGD; leave it out")
    return {id(parameter): float(group["lr"]) for group in optimizer.param_groups for parameter in group["params"]}
