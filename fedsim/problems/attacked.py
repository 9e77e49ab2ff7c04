"""Judging a model under attacks: each example is attacked by itself, under this very model."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.attacks.attack import Attack, ExampleDraws, Victim, perturbed
from fedsim.core.errors import InputError, naming
from fedsim.core.streams import SERVER, Streams
from fedsim.nets.network import PlainNetwork
from fedsim.nets.stack import Stack
from fedsim.parallel.cores import spread
from fedsim.problems.base import EVALUATED_AT_ONCE, Examples, Model, Trial
from fedsim.problems.judged import Judged, Rows

ATTACKED_AT_ONCE = EVALUATED_AT_ONCE // 8
"""Numbers that an attack makes at once, forward and back through them; few, too, so that all cores have work."""


def attacked(judged: Judged, model: Model, params: Tensor, trial: Trial) -> dict[str, float]:
    """Loss, accuracy and other measures under attacks of the model with parameters [d].

    For each attack test_<label>_loss, test_<label>_accuracy and so on, <label> the attack's; with `trial.clients`
    client_<label>_accuracy_mean, _p10 and _worst, on the examples that client accuracies are about (and so of a
    validation set). A sample of a
    set is drawn without replacement, by a draw that is the same in all runs. What an attack draws for an example is
    named by the number of the example and whether it is one of the test set: the same whenever it is attacked.
    """
    network = PlainNetwork(copy.deepcopy(model.module).eval(), model.layout, model.loss)
    y, size = model.layout.stack(params), model.footprint.activations
    sets = {name: _sampled(rows, trial.examples) for name, rows in judged.sets(trial.on).items()}
    found: dict[str, float] = {}
    for attack in trial.attacks:
        for name, rows in sets.items():
            outputs = _outputs(network, y, size, attack, rows, trial.streams)
            found |= judged.scores(f"{name}_{attack.label}", outputs, rows, trial.metrics)
        for name, (own, count) in judged.by_clients(trial.on).items() if trial.clients else ():
            outputs = _outputs(network, y, size, attack, own, trial.streams)
            found |= judged.client_scores(f"{name}_{attack.label}", outputs, own, count, trial.metrics)
    return found


def attacked_measures(judged: Judged, trial: Trial) -> list[str]:
    """The names that `attacked` gives. InputError: an attack does not go with what it is to be made on."""
    if trial.clients and not judged.has_accuracy:
        raise InputError("attack_clients", True, "clients are judged by accuracy, and these labels are no classes")
    sets = {name: _sampled(rows, trial.examples) for name, rows in judged.sets(trial.on).items()}
    judged.hold_suiting(trial.metrics, sets)
    apart = judged.by_clients(trial.on) if trial.clients else {}
    rows = [*sets.values(), *(own for own, _ in apart.values())]
    if not rows:
        raise InputError("attacks", trial.attacks[0].label, "there is no test set to attack; put train into on")
    for number, attack in enumerate(trial.attacks):
        with naming(f"attacks.{number}"):
            for source in {id(own.x): own.x for own in rows}.values():
                check_attack(attack, source, judged.data)
    labels = [attack.label for attack in trial.attacks]
    kinds = [*judged.kinds(), *(measure.label for measure in judged.beside(trial.metrics))]
    return [f"{name}_{label}_{kind}" for label in labels for name in sets for kind in kinds] + [
        column
        for label in labels
        for name, own in apart.items()
        for column in judged.client_measures(f"{name}_{label}", *own, trial.metrics)
    ]


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


def _sampled(rows: Rows, count: int | None) -> Rows:
    """A sample of at most so many of the examples: the same of the same set, whatever order its numbers are in."""
    numbers = rows.numbers.sort().values
    if count is None or count >= len(numbers):
        return rows
    order = Streams(0).permutation("attacked", torch.tensor([SERVER], device=numbers.device), len(numbers))[0]
    return replace(rows, index=numbers[order[:count].sort().values])
