"""Training by bounds: losses and gradients against their formulas, schedules, degenerate settings, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from arming import CLIMB, Armed, armed, gradient_of, run
from torch import Tensor, nn
from torch.nn import functional

import fedsim
from fedsim.client.bounding import Bounding, Seen
from fedsim.client.defence import victim
from fedsim.core.errors import InputError
from fedsim.core.schedules import Smooth
from fedsim.engine.cohort import Cohort
from fedsim.nets.bounds import Bounds, Box
from fedsim.nets.crown import Crown
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.stack import Layout
from fedsim.running.build import build_simulation
from fedsim.testing.problems import blobs, small_problem
from fedsim.testing.problems import small_experiment as small

KINDS = ("mtl_ibp", "cc_ibp", "exp_ibp")
IBP: dict[str, Any] = {"kind": "ibp", "epsilon": 0.3, "domain": "none"}


def table(kind: str, **options: Any) -> dict[str, Any]:
    return (IBP if kind == "ibp" else {"kind": kind, "attack": CLIMB}) | options


def small_net(act: type[nn.Module]) -> nn.Module:
    """The network of `tests/nets/test_bounds.py`."""
    model = nn.Sequential(nn.Linear(2, 3), act(), nn.Linear(3, 2)).double()
    numbers = (
        *([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.5]], [0.1, -0.2, 0.3]),
        *([[1.0, -1.0, 0.5], [-0.5, 2.0, 1.0]], [0.05, -0.05]),
    )
    for own, given in zip(model.parameters(), numbers, strict=True):
        own.data = torch.tensor(given, dtype=torch.float64)
    return model


@pytest.mark.parametrize(
    ("act", "worst", "expected"),
    [
        (
            nn.ReLU,
            (0.5, 0.3),
            {
                (0.0, "all"): 0.326956, (1.0, "all"): 0.420055,
                (0.1, "cc_ibp"): 0.335414, (0.1, "mtl_ibp"): 0.336266, (0.1, "exp_ibp"): 0.335252,
                (0.5, "cc_ibp"): 0.371101, (0.5, "mtl_ibp"): 0.373506, (0.5, "exp_ibp"): 0.370594,
            },
        ),
        (
            nn.Tanh,
            (0.7, 0.3),
            {
                (0.0, "all"): 0.387778, (1.0, "all"): 0.477635,
                (0.1, "cc_ibp"): 0.396097, (0.1, "mtl_ibp"): 0.396764, (0.1, "exp_ibp"): 0.395945,
                (0.5, "cc_ibp"): 0.430835, (0.5, "mtl_ibp"): 0.432706, (0.5, "exp_ibp"): 0.430368,
            },
        ),
    ],
)  # fmt: skip
def test_losses_between_an_attack_and_bounds(act, worst, expected):
    """At the worst point of the box around (0.6, 0.4)."""
    model = small_net(act)
    layout = Layout.of(dict(model.named_parameters()))
    bounds = Bounds(model, layout)
    named = bounds.named([own.detach().unsqueeze(0) for own in model.parameters()], 1)
    x, y = torch.tensor([[[0.6, 0.4]]], dtype=torch.float64), torch.tensor([[1]])
    one = torch.ones(1, 1, dtype=torch.float64)
    seen = Seen(bounds, named, x, y, one, Box.around(x, 0.1, (0.0, 1.0)), None, elide=True)
    attacked = torch.tensor([[worst]], dtype=torch.float64)
    for (alpha, kinds), loss in expected.items():
        for kind in KINDS if kinds == "all" else (kinds,):
            defence = made(table(kind, alpha=alpha))
            assert float(defence.between(seen, attacked)) == pytest.approx(loss, abs=1e-6)


def made(adversarial: dict[str, Any]) -> Any:
    return small(client={"kind": "sgd", "epochs": 1, "adversarial": adversarial}).client.defence


def least(module: nn.Module, x: Tensor, y: Tensor, epsilon: float, elide: bool) -> Tensor:
    """Lower bounds of margins [n, 3] by parts of the weights above and below 0, example by example."""
    first, _, last = (part for part in module if not isinstance(part, nn.Flatten))
    low, high, rows = x - epsilon, x + epsilon, []
    up, down = first.weight.clamp(min=0), first.weight.clamp(max=0)
    low, high = low @ up.T + high @ down.T + first.bias, high @ up.T + low @ down.T + first.bias
    low, high = low.relu(), high.relu()
    for place, target in enumerate(y.tolist()):
        if elide:
            weight, bias = last.weight[target] - last.weight, last.bias[target] - last.bias
            rows.append(weight.clamp(min=0) @ low[place] + weight.clamp(max=0) @ high[place] + bias)
        else:
            plus, minus = last.weight.clamp(min=0), last.weight.clamp(max=0)
            bottom = plus @ low[place] + minus @ high[place] + last.bias
            top = plus @ high[place] + minus @ low[place] + last.bias
            rows.append(torch.stack([bottom[target] - top[k] if k != target else 0 * top[k] for k in range(3)]))
    return torch.stack(rows)


def formula(
    kind: str, module: nn.Module, found: Armed, row: int, elide: bool = True, l1: float = 0.0, classes: str = "all"
) -> Tensor:
    """What a client of the first batch minimises: kappa 0.3, alpha 0.3."""
    count = found.counts()[row]
    x, y = found.before.x[row, :count], found.before.y[row, :count]
    margins = least(module, x, y, 0.3, elide)
    if classes == "present":
        away = found.cohort.class_counts()[row] == 0
        margins = torch.where(away, torch.inf, margins)
    worst = (-margins).exp().sum(dim=1).log()
    attacked = x
    if kind != "ibp":
        models = victim(found.cohort, found.rows, found.before)
        attacked = found.defence.perturbed(models, found.before.x, found.before.y)[row, :count]
    own = functional.cross_entropy(module(attacked), y, reduction="none")
    if kind == "cc_ibp":
        outputs = module(attacked)
        mixed = 0.3 * margins + 0.7 * (outputs.gather(1, y.unsqueeze(1)) - outputs)
        loss = (-mixed).exp().sum(dim=1).log().mean()
    elif kind == "exp_ibp":
        loss = own.mean() ** 0.7 * worst.mean().clamp(min=1e-12) ** 0.3
    else:
        loss = (0.3 * own + 0.7 * worst if kind == "ibp" else 0.7 * own + 0.3 * worst).mean()
    weights = [part.weight for part in module if isinstance(part, nn.Linear)]
    return loss + l1 * sum(weight.abs().sum() for weight in weights)


@pytest.mark.parametrize("executor", ["stacked", "loop"])
@pytest.mark.parametrize("kind", ["ibp", *KINDS])
@pytest.mark.parametrize("other", [{}, {"elide": False}, {"l1": 0.1, "classes": "present"}], ids=str)
def test_gradients_are_those_of_the_formula(kind, executor, other):
    options = {"kappa" if kind == "ibp" else "alpha": 0.3, **other}
    found = armed(table(kind, **options), 6 if executor == "stacked" else 1, executor)
    losses, gradients = found.gradients()
    values = found.cohort.network.values(found.rows, found.after)
    assert torch.allclose(values, losses, rtol=0, atol=1e-12)
    for row in range(len(losses)):
        module = found.local(row)
        loss = formula(kind, module, found, row, **other)
        assert float(losses[row]) == pytest.approx(float(loss.detach()), rel=1e-10)
        assert torch.allclose(gradients[row], gradient_of(loss, module), rtol=0, atol=1e-10)


def test_steps_are_those_of_the_gradients_and_hessians_are_theirs():
    found = armed(table("mtl_ibp", alpha=0.3))
    losses, gradients = found.gradients()
    network, start = found.cohort.network, found.rows.flat()
    moved = found.cohort.stack(start)
    along = torch.linspace(-1.0, 1.0, start.shape[1], dtype=start.dtype).expand_as(start)
    assert torch.equal(network.descend(moved, found.after, 0.1, 0.5, found.cohort.stack(along)), losses)
    assert torch.allclose(moved.flat(), start - 0.1 * (gradients + 0.5 * start - along), rtol=0, atol=1e-14)
    _, again, curved = network.products(found.rows, found.after, found.cohort.stack(along))
    assert torch.allclose(again.flat(), gradients, rtol=0, atol=1e-12)
    ahead = found.cohort.stack(start + 1e-6 * along)
    slope = (network.gradients(ahead, found.after)[1].flat() - gradients) / 1e-6
    assert torch.allclose(curved.flat(), slope, rtol=1e-3, atol=1e-3)


def test_the_ends_of_alpha_are_an_attack_and_bounds():
    standard, bounds = armed({"kind": "standard", "attack": CLIMB}), armed(table("ibp", kappa=0.0))
    pairs = [(armed(table(kind, alpha=end)), one) for kind in KINDS for end, one in ((0.0, standard), (1.0, bounds))]
    narrow = armed(table("ibp", kappa=0.0, epsilon=0.15))
    pairs.append((armed(table("mtl_ibp", alpha=1.0, epsilon_factor=0.5)), narrow))
    for one, other in pairs:
        for found, expected in zip(one.gradients(), other.gradients(), strict=True):
            assert torch.allclose(found, expected, rtol=0, atol=1e-9)


def test_all_of_them_grow_with_alpha_and_mtl_is_the_largest():
    values = {
        kind: [float(armed(table(kind, alpha=alpha)).gradients()[0].mean()) for alpha in (0.0, 0.2, 0.5, 0.9, 1.0)]
        for kind in KINDS
    }
    for kind, found in values.items():
        assert found == sorted(found), kind
        assert all(one <= most + 1e-12 for one, most in zip(found, values["mtl_ibp"], strict=True))


def test_convolutions_are_trained_by_bounds_in_a_stack_as_alone():
    data = {"shape": (1, 4, 4)}
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    client = {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1, "adversarial": table("mtl_ibp")}
    ends = []
    for name in ("stacked", "loop"):
        made = small(2, client=client, engine={"executor": name})
        simulated = build_simulation(made, small_problem(model=model, **data))
        for _ in simulated:
            pass
        ends.append(simulated.state.params)
    assert float((ends[0] - small_problem(model=model, **data).initial()).norm()) > 0.01
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_rounds_of_warm_up_are_fedavg_and_those_after_them_are_not():
    for kind in ("ibp", "mtl_ibp"):
        off = table(kind, warm_up=2)
        assert torch.equal(run(off, rounds=2), run(None, rounds=2))
        assert not torch.equal(run(off, rounds=3), run(None, rounds=3))


@pytest.fixture
def unchecked(monkeypatch):
    """Runs that defend nobody, which are refused otherwise."""
    monkeypatch.setattr("fedsim.running.build.check", lambda experiment, problem: None)


def test_epsilon_and_kappa_follow_the_servers_round(monkeypatch):
    """Of 8 rounds after 2, epsilon is A r^4 before the 2nd of them, and linear from there; kappa falls from 1 to 0.4.

    A = 1 / (2^4 + 4 2^3 6) = 1 / 208; at r = 5 epsilon is (16 + 32 3) / 208 of 0.3, kappa 1 - 0.6 5/8 = 5/8, beta 3/8.
    """
    options = {"warm_up": 2, "growth": {"kind": "smooth", "rounds": 8}, "kappa": 0.4}
    defence: Bounding = made(IBP | options)
    expected = [0, 0, 0, 1 / 208, 16 / 208, 48 / 208, 80 / 208, 112 / 208, 144 / 208, 176 / 208, 1, 1]
    assert [defence.factor(number) for number in range(12)] == pytest.approx(expected)
    assert [defence.progress(number) for number in (2, 7, 10, 20)] == [0.0, 5 / 8, 1.0, 1.0]
    monkeypatch.setattr(Cohort, "round", 7)
    found, constant = armed(IBP | options), armed(IBP | {"epsilon": 0.3 * 112 / 208, "kappa": 1.0 - 0.6 * 5 / 8})
    loss = found.defence.armed(found.cohort, 112 / 208)(found.rows, found.before)
    losses, _ = found.cohort.network.gradients(found.rows, loss)
    assert torch.allclose(losses, constant.gradients()[0], rtol=0, atol=1e-12)
    crowned = armed(IBP | options | {"crown": 1.0})
    batch = crowned.defence.armed(crowned.cohort, 112 / 208)(crowned.rows, crowned.before)
    losses, _ = crowned.cohort.network.gradients(crowned.rows, batch)
    bounds = Bounds(crowned.cohort.module, crowned.cohort.network.layout)
    named, x, y = bounds.named(crowned.rows.leaves, 6), batch.x, batch.y
    box = Box.around(x, 0.3 * 112 / 208, None)
    margins = 3 / 8 * Crown(bounds).margins(named, box, y, intervals=True) + 5 / 8 * bounds.margins(named, box, y)
    own, worst = (CrossEntropy().examples(outputs, y) for outputs in (bounds.exactly(named, x), -margins))
    expected = ((5 / 8 * own + 3 / 8 * worst) * batch.weight).sum(dim=1)
    assert torch.allclose(losses, expected, rtol=0, atol=1e-12)
    mixed = armed(table("mtl_ibp", alpha=1.0))
    half = mixed.defence.armed(mixed.cohort, 0.5)(mixed.rows, mixed.before)
    alone = armed(IBP | {"kappa": 0.0, "epsilon": 0.15}).gradients()[0]
    assert torch.allclose(mixed.cohort.network.gradients(mixed.rows, half)[0], alone, rtol=0, atol=1e-12)


def test_the_published_smooth_schedule():
    at = {10: 0.00019692, 20: 0.00315077, 25: 0.00769231, 30: 0.01384615, 50: 0.03846154, 100: 0.1, 140: 0.1}
    for step, epsilon in at.items():
        assert 0.1 * Smooth(rounds=100).factor(step) == pytest.approx(epsilon, abs=5e-9)
    assert [Smooth(rounds=2).factor(step) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]


def test_effort_is_what_bounds_take():
    """Twice an example more, through the model and back; the attack has one gradient, and CROWN counts as one."""
    assert made(IBP).effort(0) == 2.0
    assert made(IBP | {"crown": 0.5, "warm_up": 1}).effort(1) == 3.0
    assert made(IBP | {"warm_up": 1}).effort(0) == 0.0
    assert made(table("mtl_ibp")).effort(0) == 3.0


@pytest.mark.parametrize(
    ("adversarial", "line"),
    [
        (IBP | {"epsilon": -0.1}, r"client\.adversarial\.epsilon = -0\.1: "),
        (IBP | {"kappa": 1.5}, r"client\.adversarial\.kappa = 1\.5: "),
        (IBP | {"crown": -1.0}, r"client\.adversarial\.crown = -1\.0: "),
        (table("mtl_ibp", alpha=2.0), r"client\.adversarial\.alpha = 2\.0: "),
        (table("cc_ibp", attack=CLIMB | {"norm": "l2"}), r"client\.adversarial\.attack\.norm = l2: bounds are those"),
        (IBP | {"domain": [0.0, 1.0]}, r"client\.adversarial\.domain = \[0\.0, 1\.0\]: inputs range from"),
        (IBP | {"epsilon": 0.0}, r"client\.adversarial = ibp: bounds nothing in 3 rounds, so that nobody is defended"),
        (IBP | {"warm_up": 3}, r"client\.adversarial = ibp: bounds nothing in 3 rounds"),
        (
            IBP | {"warm_up": 1, "growth": {"kind": "smooth", "rounds": 5}},
            r"client\.adversarial\.growth\.rounds = 5: epsilon is 0\.059 of its size in the last of 3 rounds",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_a_line(adversarial, line):
    with pytest.raises(InputError, match=rf"^{line}"):
        run(adversarial)


def test_models_and_clients_that_bounds_do_not_go_with_are_refused():
    layers: list[tuple[list[nn.Module], str]] = [
        ([nn.Linear(6, 4), nn.LogSigmoid(), nn.Linear(4, 3)], r"LogSigmoid \(1\): has no rule of bounds"),
        (
            [nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 3)],
            r"NamedDropout \(1\): has bounds where models are judged",
        ),
        ([nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)], r"BatchNorm \(1\): has bounds where models are judged"),
    ]
    client = {"kind": "sgd", "epochs": 1, "batch_size": 4, "adversarial": IBP}
    for parts, line in layers:
        with pytest.raises(InputError, match=rf"^problem\.model = {line}"):
            build_simulation(small(client=client), small_problem(model=nn.Sequential(*parts)))
    data = blobs() | {"test": None}
    numbers = fedsim.supervised(**{**data, "y": data["y"] * 1.0}, model=nn.Linear(6, 1), loss="huber")
    with pytest.raises(InputError, match=r"client\.adversarial\.kind = ibp: its loss is about one class"):
        build_simulation(small(client=client), numbers)
    with pytest.raises(InputError, match=r"^client\.optimizer = egn: asks for outputs"):
        small(client=client | {"optimizer": "egn"})
    with pytest.raises(InputError, match=r"^client\.adversarial = ibp: shows an example in several views"):
        small(client=client | {"kind": "moon"})
