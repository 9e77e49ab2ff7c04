"""Certificates in the evaluation: closed forms, what they are beside attacks, whose they are, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim import InputError
from fedsim.attacks.attack import Victim
from fedsim.attacks.certificate import Certificate, Certified
from fedsim.attacks.gradient import FGSM, PGD
from fedsim.configuration.tables import experiment
from fedsim.core.errors import BrokenPromiseError
from fedsim.core.measures import attack_of
from fedsim.core.options import options
from fedsim.core.streams import Streams
from fedsim.nets.bounds import Bounds, Box
from fedsim.nets.crown import Crown
from fedsim.nets.losses import Loss
from fedsim.problems.base import Trial
from fedsim.problems.own_functions import black_box
from fedsim.running.build import build_simulation
from fedsim.testing.problems import mlp, small_problem
from fedsim.testing.problems import small_experiment as small

pytestmark = pytest.mark.usefixtures("unpainted")

CERTIFY = {"epsilon": 0.2, "domain": "none"}
ATTACK = {"kind": "pgd", "epsilon": 0.2, "steps": 4, "domain": "none"}


def trial(*attacks: Any, epsilon: float = 0.1, **changes: Any) -> Trial:
    certificate = Certificate(**({"epsilon": epsilon, "domain": "none"} | changes.pop("certify", {})))
    return Trial(
        attacks, changes.pop("on", ("test",)), None, changes.pop("clients", False), Streams(3), (), certificate
    )


def two_classes(
    x: list[list[float]], y: list[int], clients: list[list[int]], dtype: torch.dtype = torch.float64
) -> Any:
    """Logits (x_1 + 2 x_2, 0) for two inputs: class 0 where x_1 + 2 x_2 is positive."""
    model = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    model.weight.data = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    return fedsim.supervised(np.array(x), np.array(y), clients=clients, model=model, dtype=dtype)


def test_of_a_linear_model_fgsm_is_as_bad_as_can_be():
    # As in `test_robust_evaluation`: of margins 0.5, 0.2, 0.2 and 1 of the right class 0.3 are taken.
    problem = two_classes([[0.5, 0.0], [0.0, 0.1], [0.2, -0.2], [-1.0, 0.0]], [0, 0, 1, 1], [[0, 1], [2, 3]])
    asked = trial(FGSM(epsilon=0.1, domain="none"), on=("train",), clients=True)
    found = problem.attacked(problem.initial(), asked)
    assert list(found) == problem.attacked_measures(asked)
    for name in ("ibp", "crown"):
        assert found[f"global_train_certified_{name}_accuracy"] == found["global_train_fgsm_accuracy"] == 0.5
        assert found[f"global_train_certified_{name}_loss"] == pytest.approx(found["global_train_fgsm_loss"], abs=1e-12)
        assert (
            found[f"client_certified_{name}_accuracy_mean"] == found[f"client_certified_{name}_accuracy_worst"] == 0.5
        )
        assert attack_of(f"client_certified_{name}_accuracy_mean") == f"certified_{name}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_not_certain_is_not_certified(dtype):
    """A margin of 0 in the box is a tie; in single precision one of a millionth may be rounding.

    Margins 0.3, 0.300001 and 0.31, of which the box takes 0.1 + 0.2.
    """
    x = [[0.25, 0.025], [0.3 + 1e-6, 0.0], [0.31, 0.0]]
    problem = two_classes(x, [0, 0, 0], [[0], [1], [2]], dtype)
    for way in ("ibp", "crown"):
        asked = trial(epsilon=0.1, on=("train",), certify={"by": way})
        found = problem.attacked(problem.initial(), asked)
        share = 2 / 3 if dtype == torch.float64 else 1 / 3
        assert found[f"global_train_certified_{way}_accuracy"] == pytest.approx(share)
        sure = problem.attacked(problem.initial(), trial(epsilon=0.0, on=("train",), certify={"by": way}))
        assert sure[f"global_train_certified_{way}_accuracy"] == 1.0


def test_of_two_bounds_the_better_one_counts():
    """Lines around ReLUs are mostly tighter than intervals, and not always."""
    problem = small_problem()
    params = 2.0 * problem.initial()
    certificate = Certificate(epsilon=0.2, domain="none")
    made = Certified(certificate, problem.model.module, problem.model.layout)
    found = made.worst(params, problem.data.x, problem.data.y)
    bounds = Bounds(problem.model.module, problem.model.layout)
    named = bounds.named(problem.model.layout.stack(params).leaves, 1)
    box = Box.around(problem.data.x.unsqueeze(0), 0.2, None)
    lines = -Crown(bounds).margins(named, box, problem.data.y.unsqueeze(0))[0]
    assert bool((found["crown"] <= found["ibp"]).all())
    assert bool((found["crown"] < found["ibp"]).any())
    assert bool((lines > found["ibp"] + 1e-6).any())


def test_a_box_ends_where_the_domain_does():
    problem = two_classes([[0.05, 0.1]], [0], [[0]])
    for domain, certain in (("none", 0.0), ([0.0, 1.0], 1.0)):
        asked = trial(epsilon=0.09, on=("train",), certify={"domain": domain})
        found = problem.attacked(problem.initial(), asked)
        assert found["global_train_certified_ibp_accuracy"] == certain


def test_certified_is_at_most_attacked_is_at_most_clean_and_rows_have_it_all(tmp_path):
    evaluation = {"attacks": [ATTACK], "certify": CERTIFY, "attack_clients": True, "every": 1, "on": ["test", "train"]}
    client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1}
    made = small(6, client=client, evaluation=evaluation)
    result = fedsim.run(made, problem=small_problem(), out=tmp_path / "run")
    for row in result.history.rows:
        for whose, end in (("test", ""), ("global_train", ""), ("client", "_mean"), ("client", "_worst")):
            ibp, crown, attacked, clean = (
                row[f"{whose}_{label}accuracy{end}"] for label in ("certified_ibp_", "certified_crown_", "pgd4_", "")
            )
            assert ibp <= crown <= attacked <= clean
        assert row["test_pgd4_loss"] <= row["test_certified_crown_loss"] <= row["test_certified_ibp_loss"]
    assert 0.0 < row["test_certified_ibp_accuracy"] < row["test_pgd4_accuracy"] + 0.3
    again = experiment(**made.resolved())
    assert again.resolved() == made.resolved()


def test_certificates_alone_keep_the_pace_of_attacks_and_a_restored_run_goes_on():
    made = small(6, evaluation={"certify": CERTIFY | {"by": "ibp"}, "every": 1, "attacks_every": 2})
    whole = list(build_simulation(made, small_problem()))
    assert ["test_certified_ibp_accuracy" in row for row in whole] == [False, True] * 3
    assert "test_certified_crown_accuracy" not in whole[-1]
    first = build_simulation(made, small_problem())
    rows = [first.step() for _ in range(3)]
    second = build_simulation(made, small_problem())
    second.restore(first.snapshot())
    rows += list(second)
    assert [row | {"wall": 0} for row in rows] == [row | {"wall": 0} for row in whole]


@options
class Escape(PGD):
    """Leaves its ball."""

    def perturb(
        self, victim: Victim, x: Tensor, targets: Tensor, loss: Loss | None = None, factor: float = 1.0
    ) -> Tensor:
        return -x


def test_an_attack_that_leaves_its_ball_is_found_out():
    problem = two_classes([[0.5, 0.0], [-1.0, 0.0]], [0, 1], [[0], [1]])
    line = r"example 0 of the train set is certified_ibp and misclassified under pgd10, which left its ball"
    with pytest.raises(BrokenPromiseError, match=line):
        problem.attacked(problem.initial(), trial(Escape(epsilon=0.1, domain="none"), on=("train",)))
    # One that may go farther, or out of the domain, is not held to it.
    problem.attacked(problem.initial(), trial(Escape(epsilon=0.2, domain="none"), on=("train",)))
    within = {"domain": [-1.0, 1.0]}
    problem.attacked(problem.initial(), trial(Escape(epsilon=0.1, domain="none"), on=("train",), certify=within))


@pytest.mark.parametrize(
    ("evaluation", "line"),
    [
        ({"certify": {"epsilon": -0.1}}, r"evaluation\.certify\.epsilon = -0\.1"),
        ({"certify": {}}, r"evaluation\.certify\.epsilon = \(nothing\): this option has no default"),
        ({"certify": {"epsilon": 0.1, "by": "beta"}}, r"evaluation\.certify\.by"),
        ({"certify": {"epsilon": 0.1, "by": ["ibp", "ibp"]}}, r"evaluation\.certify\.by = .*: names one way twice"),
        (
            {"certify": {"epsilon": 0.1, "domain": [1.0, 0.0]}},
            r"evaluation\.certify\.domain = \[1\.0, 0\.0\]: the lower",
        ),
        (
            {"certify": CERTIFY, "attacks": [ATTACK | {"name": "certified_ibp"}]},
            r"evaluation\.attacks = certified_ibp: certificates are called so",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_read(evaluation, line):
    with pytest.raises(InputError, match=rf"^{line}"):
        experiment(evaluation=evaluation)


def test_what_does_not_fit_the_problem_is_refused_before_the_run(capsys):
    def refused(line: str, problem: Any, client: dict[str, Any] | None = None, **certify: Any) -> None:
        tables = {} if client is None else {"client": client}
        with pytest.raises(InputError, match=rf"^{line}"):
            build_simulation(small(evaluation={"certify": CERTIFY | certify}, **tables), problem)

    refused(r"evaluation\.certify\.domain = \[0\.0, 1\.0\]: inputs range", small_problem(), domain=[0.0, 1.0])
    tanh = mlp(activation=nn.Tanh)
    line = r"evaluation\.certify = given: Tanh \(2\) crown knows linear layers with ReLU between; take ibp alone"
    refused(line, small_problem(model=tanh))
    build_simulation(small(evaluation={"certify": CERTIFY | {"by": "ibp"}}), small_problem(model=tanh))
    assert capsys.readouterr().err == ""
    normed = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 3))
    build_simulation(small(evaluation={"certify": CERTIFY | {"by": "ibp"}}), small_problem(model=normed))
    assert "certificates are weak, for bounds through LayerNorm (1) are" in capsys.readouterr().err
    functions = black_box([lambda x: (x**2).sum()] * 4, dimension=2, kind="scalar")
    refused(r"evaluation\.certify = given: the clients of a black box have no examples", functions, {"kind": "fedzo"})
