"""Judging a model under attacks, each example by itself, under this very model, and by what no attack can do."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedsim.attacks.attack import Attack, ExampleDraws, Victim, perturbed
from fedsim.attacks.certificate import Certificate, Certified, Way
from fedsim.core.errors import BrokenPromiseError, InputError, naming
from fedsim.core.streams import SERVER, Streams
from fedsim.nets.network import PlainNetwork
from fedsim.nets.stack import Stack
from fedsim.parallel.cores import spread
from fedsim.problems.base import EVALUATED_AT_ONCE, Examples, Model, Trial
from fedsim.problems.judged import Judged, Rows
from fedsim.problems.measures import Measure

ATTACKED_AT_ONCE = EVALUATED_AT_ONCE // 8
"""Numbers that an attack makes at once, forward and back through them; few, too, so that all cores have work."""


def attacked(judged: Judged, model: Model, params: Tensor, trial: Trial) -> dict[str, float]:
    """Loss, accuracy and other measures under attacks of the model with parameters [d].

    For each attack test_<label>_loss, test_<label>_accuracy and so on, <label> the attack's; with `trial.clients`
    client_<label>_accuracy_mean, _p10 and _worst, on the examples that client accuracies are about (and so of a
    validation set). A sample of a
    set is drawn without replacement, by a draw that is the same in all runs. What an attack draws for an example is
    named by the number of the example and whether it is one of the test set: the same whenever it is attacked.

    With `trial.certify` the same of bounds, whose loss no attack's is above and whose accuracy no attack's is below:
    an attack that stays in the boxes and yet misclassifies what is certified ends the run, BrokenPromiseError.
    """
    network = PlainNetwork(copy.deepcopy(model.module).eval(), model.layout, model.loss)
    y, size = model.layout.stack(params), model.footprint.activations
    sets: dict[str, tuple[Rows, Tensor | None]]
    sets = {name: (_sampled(rows, trial.examples), None) for name, rows in judged.sets(trial.on).items()}
    sets |= judged.by_clients(trial.on) if trial.clients else {}
    found: dict[str, float] = {}

    def tell(name: str, label: str, outputs: Tensor, metrics: Sequence[Measure]) -> None:
        rows, count = sets[name]
        said = judged.scores if count is None else partial(judged.client_scores, count=count)
        found.update(said(f"{name}_{label}", outputs, rows, metrics=metrics))

    right = dict[str, dict[str, Tensor]]()
    for attack in trial.attacks:
        for name, (rows, _) in sets.items():
            outputs = _outputs(network, y, size, attack, rows, trial.streams)
            tell(name, attack.label, outputs, trial.metrics)
            if trial.certify is not None and trial.certify.holds(attack.epsilon, attack.bounds):
                right.setdefault(name, {})[attack.label] = outputs.argmax(dim=-1) == rows.targets
    if trial.certify is None:
        return found
    certified = certifies(trial.certify, model)
    worst = {name: _worst(certified, params, size, rows) for name, (rows, _) in sets.items()}
    for way, label in trial.certify.labels.items():
        for name, (rows, _) in sets.items():
            outputs = worst[name][way]
            tell(name, label, outputs, ())
            _hold_sound(label, outputs.argmax(dim=-1) == rows.targets, right.get(name, {}), rows)
    return found


def _hold_sound(label: str, certain: Tensor, right: Mapping[str, Tensor], rows: Rows) -> None:
    """BrokenPromiseError: an attack has an example wrong, [n], that is certified."""
    for attack, withstood in right.items():
        fooled = rows.numbers[certain & ~withstood]
        if len(fooled):
            example = f"example {int(fooled[0])} of the {rows.source} set"
            raise BrokenPromiseError(f"{example} is {label} and misclassified under {attack}, which left its ball")


def attacked_measures(judged: Judged, model: Model, trial: Trial) -> list[str]:
    """The names that `attacked` gives. InputError: an attack, or a bound, does not go with what it is to be made on."""
    if trial.clients and not judged.has_accuracy:
        raise InputError("attack_clients", True, "clients are judged by accuracy, and these labels are no classes")
    sets = {name: _sampled(rows, trial.examples) for name, rows in judged.sets(trial.on).items()}
    judged.hold_suiting(trial.metrics, sets)
    apart = judged.by_clients(trial.on) if trial.clients else {}
    rows = [*sets.values(), *(own for own, _ in apart.values())]
    if not rows:
        raise InputError(*trial.named, "there is no test set to attack; put train into on")
    for number, attack in enumerate(trial.attacks):
        with naming(f"attacks.{number}"):
            for source in {id(own.x): own.x for own in rows}.values():
                check_attack(attack, source, judged.data)
    named = {attack.label: trial.metrics for attack in trial.attacks}
    if trial.certify is not None:
        with naming("certify"):
            for source in {id(own.x): own.x for own in rows}.values():
                trial.certify.check(source)
        if not judged.data.labelled:
            raise InputError("certify", "given", "examples do not have one class each, of which it is; leave it out")
        certifies(trial.certify, model)
        named |= dict.fromkeys(trial.certify.labels.values(), ())
    found = list[str]()
    for label, metrics in named.items():
        kinds = [*judged.kinds(), *(measure.label for measure in judged.beside(metrics))]
        found += [f"{name}_{label}_{kind}" for name in sets for kind in kinds]
        for name, own in apart.items():
            found += judged.client_measures(f"{name}_{label}", *own, metrics)
    return found


def certifies(certificate: Certificate, model: Model) -> Certified:
    """What bounds a model. InputError: a layer has no rule."""
    try:
        return Certified(certificate, model.module, model.layout)
    except InputError as error:  # which is of the model
        raise InputError("certify", "given", f"{error.value} {error.remedy}; or leave it out") from None


def check_attack(attack: Attack, x: Tensor, data: Examples) -> None:
    """InputError: the attack does not go with inputs x [n, ...], or with what is known of the training examples."""
    if not x.is_floating_point():
        raise InputError("kind", attack.label, "the inputs are tokens, which cannot be moved a little; leave it out")
    if data.y.dim() > 1:
        several = f"an example has several {data.task}, and it is against one"
        raise InputError("kind", attack.label, f"{several}; leave it out")
    if data.num_classes < attack.least_classes:
        raise InputError("kind", attack.label, f"it needs {attack.least_classes} classes at least; leave it out")
    attack.check(x)


def _outputs(network: PlainNetwork, y: Stack, size: int, attack: Attack, rows: Rows, streams: Streams) -> Tensor:
    """Outputs [n, K] for attacked inputs. The numbers do not depend on how many cores there are.

    size: numbers that the forward pass of one example makes.
    """
    batch = min(max(ATTACKED_AT_ONCE // size, 16), 128)
    if attack.only_judges:  # it takes batches of its own, one after the other
        batch = max(len(rows.numbers), 1)
    # Apart from what clients draw while they train, and the test set's examples apart from the others.
    named = Streams(streams.derive(f"evaluation/{rows.source}"))

    def outputs(numbers: Tensor) -> Tensor:
        x, targets = rows.x[numbers].unsqueeze(0), rows.y[numbers].unsqueeze(0)
        victim = Victim(network, y, network.loss, ExampleDraws(named, numbers))
        return network.outputs(y, perturbed(attack, attack.perturb(victim, x, targets), x))[0]

    return torch.cat(spread(outputs, torch.split(rows.numbers, batch)))


def _worst(certified: Certified, params: Tensor, size: int, rows: Rows) -> dict[Way, Tensor]:
    """What `Certified.worst` says of examples, [n, K] by way. The numbers do not depend on how many cores there are."""
    batch = min(max(ATTACKED_AT_ONCE // size, 16), 128)

    def worst(numbers: Tensor) -> dict[Way, Tensor]:
        return certified.worst(params, rows.x[numbers], rows.y[numbers])

    parts = spread(worst, torch.split(rows.numbers, batch))
    return {way: torch.cat([part[way] for part in parts]) for way in parts[0]}


def _sampled(rows: Rows, count: int | None) -> Rows:
    """A sample of at most so many of the examples: the same of the same set, whatever order its numbers are in."""
    numbers = rows.numbers.sort().values
    if count is None or count >= len(numbers):
        return rows
    order = Streams(0).permutation("attacked", torch.tensor([SERVER], device=numbers.device), len(numbers))[0]
    return replace(rows, index=numbers[order[:count].sort().values])
