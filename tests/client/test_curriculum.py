"""Curricula of examples: orders and passes by hand, equal compute, and FedAvg where nothing is ordered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fedsim
from fedsim.client.curriculum import MODEL, SampleCurriculum
from fedsim.core.errors import InputError
from fedsim.engine.batches import steps_of
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Order
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_executor
from fedsim.running.runner import run
from fedsim.testing.problems import blobs, mlp
from fedsim.testing.problems import small_experiment as small

TRAINING = {"kind": "sgd", "epochs": 3, "batch_size": 4, "lr": 0.1}
SIZES = (11, 8, 5, 1)


def problem() -> Supervised:
    return fedsim.supervised(**blobs(sizes=SIZES), model=mlp(), dtype=torch.float64, device="cpu")


def experiment(**curriculum):
    return small(
        2, client=TRAINING | {"curriculum": {"floor": 1, **curriculum}}, selection={"kind": "uniform", "count": 4}
    )


def cohort(made: Supervised, curriculum: SampleCurriculum, state: dict[str, torch.Tensor] | None = None) -> Cohort:
    executor = build_executor(experiment(), made)
    job = executor.assign(Order("train", torch.arange(len(SIZES)), {"params": made.initial()}))
    return Cohort(made, executor.network, executor.streams, job, state or {})


def losses_by_hand(made: Supervised, params: torch.Tensor, client: int) -> torch.Tensor:
    own = made.data.order[made.data.begin[client] : made.data.begin[client] + made.data.count[client]]
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(
            made.module(params)(made.data.x[own]), made.data.y[own], reduction="none"
        )


@pytest.mark.parametrize("order", ["curriculum", "anti"])
def test_examples_are_ordered_by_their_loss_under_the_model_that_was_sent(order):
    made = problem()
    curriculum = SampleCurriculum(order=order, floor=1)
    course = curriculum.course(cohort(made, curriculum), 3, 4)
    for client, rank in enumerate(torch.split(course.rank, list(SIZES))):
        losses = losses_by_hand(made, made.initial(), client)
        expected = losses.argsort(descending=order == "anti")
        assert rank.argsort().tolist() == expected.tolist()


def test_the_own_model_scores_once_there_is_one():
    made, theta = problem(), problem().initial()
    own = theta + torch.linspace(-1, 1, len(theta), dtype=theta.dtype)
    state = {
        "curriculum_model": own.expand(len(SIZES), -1).clone(),
        "curriculum_trained": torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64),
    }
    local = SampleCurriculum(score="local").scores(cohort(made, SampleCurriculum(), state))
    both = SampleCurriculum(score="both").scores(cohort(made, SampleCurriculum(), state))
    for client, size in enumerate(SIZES):
        s_g = losses_by_hand(made, theta, client)
        s_l = losses_by_hand(made, own, client) if client in (0, 2) else s_g
        assert torch.allclose(local[client, :size], s_l, rtol=0, atol=1e-12)
        assert torch.allclose(both[client, :size], s_g + s_l, rtol=0, atol=1e-12)
        assert both[client, size:].isnan().all()


def test_what_is_remembered_is_the_model_at_the_end_of_training():
    made = problem()
    executor = build_executor(experiment(score="local"), made)
    work = executor.execute(executor.assign(Order("train", torch.arange(len(SIZES)), {"params": made.initial()})))
    remembered = executor.store.read(torch.arange(len(SIZES)))[MODEL]
    assert torch.allclose(remembered, made.initial() + work.payload["delta"], rtol=0, atol=1e-12)
    assert not torch.allclose(remembered, work.payload["delta"])


def test_errors_instead_of_losses():
    made = problem()
    wrong = SampleCurriculum(measure="error").scores(cohort(made, SampleCurriculum()))
    own = made.data.order[: SIZES[0]]
    expected = (made.module(made.initial())(made.data.x[own]).argmax(dim=1) != made.data.y[own]).double()
    assert wrong[0, : SIZES[0]].tolist() == expected.tolist()
    assert 0 < expected.sum() < SIZES[0]


def test_scores_that_are_not_finite_come_last_in_a_curriculum_and_first_against_it():
    made = problem()

    class Broken(SampleCurriculum):
        def scores(self, cohort):
            found = torch.arange(11.0, dtype=torch.float64).expand(len(SIZES), -1).clone()
            found[:, 0] = torch.nan
            return found

    for order, expected in (("curriculum", [*range(1, 11), 0]), ("anti", [0, *range(10, 0, -1)])):
        broken = Broken(order=order)
        rank = broken.course(cohort(made, broken), 1, 4).rank[: SIZES[0]]
        assert rank.argsort().tolist() == expected


def test_equal_scores_are_in_random_order_by_name():
    made, curriculum = problem(), SampleCurriculum(order="random", floor=1)
    ranks = [curriculum.course(cohort(made, curriculum), 1, 4).rank for _ in range(2)]
    assert torch.equal(*ranks)
    assert ranks[0][:11].tolist() != list(range(11))
    assert sorted(ranks[0][:11].tolist()) == list(range(11))


def test_passes_of_a_client_by_hand():
    # N = 11, B = 4, E = 3: 9 steps. b = 0.2: int(2.2) = 2 examples at step 0, one step; at step 1, w = 1/7.2:
    # int(11 (0.2 + 0.8/7.2)) = int(3.42) = 3; at 2 int(4.64) = 4; at 3 int(5.87) = 5, two steps; at 5 int(8.31) = 8,
    # two steps; at 7 int(10.76) = 10, three steps, of which the budget of 9 leaves two.
    curriculum = SampleCurriculum(floor=1)
    course = curriculum.course(cohort(problem(), curriculum), 3, 4)
    assert course.taken[: course.passes[0]].tolist() == [2, 3, 4, 5, 8, 10]
    assert course.steps.tolist() == [9, 6, 6, 3]


def test_the_published_budget_is_one_step_an_epoch_more_where_batches_come_out_even():
    # N = 8, B = 4: floor(8 / 4) + 1 = 3 steps an epoch instead of 2, and the last pass is completed.
    published = SampleCurriculum(budget="published", pacing={"kind": "linear", "b": 1.0})
    assert published.steps(torch.tensor([8]), 3, 4).tolist() == [10]  # passes of 2 steps until 9 are reached
    assert published.steps(torch.tensor([11]), 3, 4).tolist() == [9]


@pytest.mark.parametrize("pacing", ["linear", "quadratic", "sqrt", "step", "exponential", "logarithmic"])
@pytest.mark.parametrize("order", ["curriculum", "anti", "random"])
def test_as_many_steps_as_without_a_curriculum(order, pacing):
    sizes = torch.tensor(SIZES)
    assert torch.equal(
        SampleCurriculum(order=order, pacing=pacing, floor=1).steps(sizes, 3, 4), steps_of(sizes, 3, None, 4)
    )


def test_batches_are_about_the_first_examples_of_the_order_each_once_a_pass():
    made, curriculum = problem(), SampleCurriculum(floor=1)
    worked = cohort(made, curriculum)
    course = curriculum.course(worked, 3, 4)
    seen = [
        [made.data.x.eq(row).all(dim=1).nonzero().item() for row in batch.x[0][batch.weight[0] > 0]]
        for batch in worked.batches(batch_size=4, course=course)
    ]
    easiest = made.data.order[course.rank[:11].argsort()].tolist()
    assert sorted(seen[0]) == sorted(easiest[:2])
    assert sorted(seen[1]) == sorted(easiest[:3])
    assert sorted(seen[2]) == sorted(easiest[:4])
    assert sorted(seen[3] + seen[4]) == sorted(easiest[:5])
    assert sorted(seen[5] + seen[6]) == sorted(easiest[:8])
    assert len(set(seen[7] + seen[8])) == 8
    assert set(seen[7] + seen[8]) <= set(easiest[:10])
    assert worked.steps_taken.tolist() == [9, 6, 6, 3]


@pytest.mark.parametrize(
    "curriculum",
    [
        {"pacing": {"kind": "linear", "b": 1.0}, "order": "anti"},
        {"pacing": {"kind": "exponential", "a": 0.0}},
        {"pacing": {"kind": "step", "b": 1.0, "a": 1.0}, "order": "random"},
        {"floor": 100},
    ],
)
def test_where_all_examples_are_in_from_the_first_it_is_fedavg_bit_for_bit(curriculum):
    plain = run(small(2, client=TRAINING), problem=problem(), save=False)
    ordered = run(experiment(**curriculum), problem=problem(), save=False)
    assert torch.equal(plain.params, ordered.params)


@pytest.mark.parametrize("curriculum", [{}, {"order": "anti"}, {"order": "random"}, {"score": "both"}])
def test_a_curriculum_is_not_fedavg(curriculum):
    plain = run(small(2, client=TRAINING), problem=problem(), save=False)
    assert not torch.equal(plain.params, run(experiment(**curriculum), problem=problem(), save=False).params)


def test_scoring_changes_neither_models_nor_the_draws_of_training():
    made = problem()
    theta, before = made.initial(), torch.get_rng_state()
    worked = cohort(made, SampleCurriculum())
    SampleCurriculum().scores(worked)
    assert torch.equal(made.initial(), theta)
    assert torch.equal(torch.get_rng_state(), before)
    untouched = cohort(made, SampleCurriculum())
    for one, other in zip(
        worked.batches(epochs=1, batch_size=4), untouched.batches(epochs=1, batch_size=4), strict=True
    ):
        assert torch.equal(one.x, other.x)


def test_the_mean_score_is_reported():
    made = problem()
    result = run(experiment(), problem=made, save=False)
    losses = torch.cat([losses_by_hand(made, made.initial(), client) for client in range(len(SIZES))])
    assert result.history["difficulty"][0] == pytest.approx(float(losses.mean()), rel=1e-9)


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ({"steps": 3, "batch_size": 4, "curriculum": {}}, "client.curriculum = given: it orders epochs"),
        (TRAINING | {"curriculum": {"score": "expert", "measure": "error"}}, "client.curriculum.measure = error"),
        (TRAINING | {"curriculum": {"pacing": "cubic"}}, "client.curriculum.pacing.kind = cubic"),
        (TRAINING | {"curriculum": {"floor": 0}}, "client.curriculum.floor = 0"),
        (TRAINING | {"curriculum": {"scores": "global"}}, "client.curriculum.scores = global: no such option"),
    ],
)
def test_bad_options_are_named(client, message):
    with pytest.raises(InputError, match=message):
        small(1, client=client if "kind" in client else {"kind": "sgd", **client})


def test_a_regression_has_no_wrong_predictions():
    data = blobs(sizes=(6, 6))
    made = fedsim.supervised(
        data["x"],
        data["x"][:, 0],
        model=mlp(classes=1),
        clients=data["clients"],
        loss="squared_error",
        dtype=torch.float64,
    )
    with pytest.raises(InputError, match="examples do not have one class each"):
        run(
            small(1, client=TRAINING | {"curriculum": {"measure": "error"}}, selection={"kind": "uniform", "count": 2}),
            problem=made,
            save=False,
        )


def test_asynchronous_clients_score_under_the_version_that_they_were_sent():
    made = problem()
    theta = made.initial()
    versions = [theta, theta + torch.linspace(-1, 1, len(theta), dtype=theta.dtype)]
    orders = tuple(
        Order("train", torch.arange(4), {"params": sent}, round=number) for number, sent in enumerate(versions)
    )
    executor = build_executor(experiment(), made)
    origin = torch.tensor([0, 1, 1, 0])
    job = replace(executor.assign(orders[0]), orders=orders, origin=origin)
    mixed = Cohort(made, executor.network, executor.streams, job, {})
    scores = SampleCurriculum().scores(mixed)
    for client, size in enumerate(SIZES):
        expected = losses_by_hand(made, versions[int(origin[client])], client)
        assert torch.allclose(scores[client, :size], expected, rtol=0, atol=1e-12)


def test_of_nobody_there_is_nothing_to_order():
    executor = build_executor(experiment(), problem())
    nobody = Order("train", torch.zeros(0, dtype=torch.int64), {"params": executor.problem.initial()})
    assert len(executor.execute(executor.assign(nobody)).payload["delta"]) == 0
