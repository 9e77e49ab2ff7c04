"""The other engines of the benchmark table do the same work, and do it rightly."""

import os
import signal
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from experiments.benchmarks.peers import networks, plain, works
from experiments.benchmarks.peers.flower_ray import FlowerRay, session_processes
from experiments.benchmarks.peers.jax_hand import JaxHand, buckets, shared_orders, sorted_keys
from experiments.benchmarks.peers.pfl_research import PflResearch
from experiments.benchmarks.peers.plain import LeanLoop, PlainLoop
from experiments.benchmarks.peers.work import Pgd, Work, threads
from experiments.benchmarks.rounds import AVERAGING

# Sums of float32 numbers near 0.1 in another order: some rounding errors of 1e-8 a step, over 60 steps.
SAME = {"rtol": 0.0, "atol": 2e-6}
NO_DATA = "FEDSIM_DATA does not name a folder with FashionMNIST"


@pytest.fixture(scope="module")
def tiny() -> Work:
    """Five of the digits' clients, of unequal size, in two epochs."""
    return cut(works.digits(), clients=5, epochs=2)


def cut(work: Work, clients: int, **changes) -> Work:
    sizes = [len(rows) for rows in work.clients[:clients]]
    assert len(set(sizes)) > 1, "unequal sizes show wrong weights"
    return replace(work, clients=work.clients[:clients], **changes)


def after(peer, rounds: int) -> dict[str, torch.Tensor]:
    peer.start()
    for _ in range(rounds):
        peer.round()
    parameters = peer.parameters()
    peer.stop()
    return parameters


def assert_same(ours, theirs) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], **SAME)


@pytest.mark.parametrize("name", ["digits", "images"])
def test_plain_and_lean_end_in_the_same_parameters(name, monkeypatch):
    monkeypatch.setattr(works, "_fashion_mnist", lambda: None)
    work = works.digits() if name == "digits" else small_images(monkeypatch)
    work = cut(work, clients=5, epochs=2, per_round=3)
    assert_same(after(PlainLoop(work, threads=1), 3), after(LeanLoop(work, threads=1), 3))


def small_images(monkeypatch) -> Work:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 1, 28, 28, generator=generator), torch.arange(100) % 10
    monkeypatch.setattr(works, "_random_images", lambda *_, **__: (x, y, x, y))
    work = works.images()
    return replace(work, clients=[np.arange(10 * c, 10 * c + 3 + c) for c in range(5)], batch_size=4)


@pytest.mark.parametrize("loop", [PlainLoop, LeanLoop])
def test_a_step_of_two_clients_is_the_gradient_step_on_their_union(tiny, loop):
    # With one full batch, theta_i = theta - lr g_i with g_i the mean over n_i examples, so
    # sum n_i theta_i / n = theta - lr * (mean gradient over all n): only with weights by examples.
    work = replace(tiny, clients=[np.arange(1), np.arange(1, 10)], epochs=1, batch_size=100)
    model = work.model()
    F.cross_entropy(model(work.x[:10]), work.y[:10]).backward()
    expected = {n: p.detach() - work.lr * p.grad for n, p in model.named_parameters()}
    assert_same(after(loop(work, threads=1), 1), expected)


@pytest.mark.parametrize("loop", [PlainLoop, LeanLoop])
def test_the_last_partial_batch_is_kept(tiny, loop):
    # 5 examples in batches of 4 make 2 steps; without the partial one, example order[4] would not matter.
    work = replace(tiny, clients=[np.arange(5)], epochs=1, batch_size=4)
    (order,) = work.orders(0, 0)
    model = work.model()
    for rows in (order[:4], order[4:]):
        gradients = torch.autograd.grad(F.cross_entropy(model(work.x[rows]), work.y[rows]), model.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= work.lr * gradient
    expected = {name: value.detach() for name, value in model.named_parameters()}
    assert_same(after(loop(work, threads=1), 1), expected)


@pytest.mark.parametrize("loop", [PlainLoop, LeanLoop])
def test_each_round_changes_the_model_and_the_copies_given_out_stay(tiny, loop):
    peer = loop(tiny, threads=1)
    peer.start()
    seen = [peer.parameters()]
    for _ in range(3):
        peer.round()
        seen.append(peer.parameters())
    weights = [parameters["0.weight"] for parameters in seen]
    assert torch.equal(weights[0], tiny.model().state_dict()["0.weight"])
    assert all(not torch.equal(a, b) for a, b in pairwise(weights))


@pytest.mark.parametrize("loop", [PlainLoop, LeanLoop])
def test_digits_are_learnt(loop):
    peer = loop(replace(works.digits(), lr=0.5), threads=1)
    peer.start()
    before = peer.accuracy()
    peer.round()
    # Ten classes: 0.1 by chance. The larger step makes one round enough to see learning.
    assert before < 0.3
    assert peer.accuracy() > 0.5


def test_threads_are_given_back(tiny):
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    after(PlainLoop(tiny, threads=before + 1), 1)
    assert torch.get_num_threads() == before


def test_orders_are_fresh_for_each_epoch_round_and_client_and_repeatable(tiny):
    work = replace(tiny, clients=[np.arange(50), np.arange(50)], epochs=2)
    drawn = [tuple(o.tolist()) for r in range(3) for c in range(2) for o in work.orders(r, c)]
    assert len(set(drawn)) == 12
    assert all(sorted(order) == list(range(50)) for order in drawn)
    assert drawn == [tuple(o.tolist()) for r in range(3) for c in range(2) for o in work.orders(r, c)]


def test_a_cohort_has_distinct_clients_and_changes(tiny):
    work = replace(works.digits(), per_round=10)
    cohorts = [work.chosen(round_) for round_ in range(4)]
    assert all(len(set(cohort)) == 10 == work.cohort_size for cohort in cohorts)
    assert len({tuple(cohort) for cohort in cohorts}) == 4
    assert tiny.chosen(3) == [0, 1, 2, 3, 4]


def test_digits_deals_every_training_example_to_one_client():
    work = works.digits()
    # 1797 digits, of which 1797 // 5 = 359 are held out.
    assert (len(work.y), len(work.y_test)) == (1438, 359)
    assert sorted(np.concatenate(work.clients).tolist()) == list(range(1438))
    assert len(work.clients) == 100
    assert min(map(len, work.clients)) >= 1
    # alpha = 0.3 is far from equal sizes of 14.
    assert max(map(len, work.clients)) > 2 * 14
    assert float(work.x.max()) == 1.0


def test_images_without_data_have_the_shape_of_fashion_mnist(monkeypatch):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    assert_images(works.images())


def test_images_are_fashion_mnist_where_it_is():
    if works._fashion_mnist() is None:
        pytest.skip(NO_DATA)
    work = works.images()
    assert_images(work)
    # The published mean of Fashion-MNIST's training pixels, and its equal classes.
    assert float(work.x.mean()) == pytest.approx(0.2860, abs=1e-4)
    assert work.y.bincount().tolist() == [6000] * 10


def assert_images(work: Work) -> None:
    assert work.x.shape == (60_000, 1, 28, 28)
    assert work.x_test.shape == (10_000, 1, 28, 28)
    assert [len(rows) for rows in work.clients] == [600] * 100
    assert len(np.unique(np.concatenate(work.clients))) == 60_000
    assert sum(len(work.clients[client]) for client in work.chosen(0)) == 6_000


@pytest.mark.parametrize("make", [networks.mlp, networks.cnn])
def test_models_start_alike_and_leave_the_global_generator_alone(make):
    before = torch.random.get_rng_state()
    first, second = make(), make()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(first, nn.Module)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
        # Uniform, not constant and not what the memory held: within the bound fan_in^-1/2 <= 25^-1/2.
        assert 0.0 < float(a.abs().max()) <= 0.2
        assert float(a.std()) > 0.0


def test_pfl_research_ends_in_the_parameters_of_the_plain_loop(tiny):
    pytest.importorskip("pfl")
    ours, theirs = after(PlainLoop(tiny, threads=1), 2), after(PflResearch(tiny, threads=1), 2)
    assert_same(ours, theirs)
    some = replace(tiny, per_round=2)
    assert_same(after(PlainLoop(some, threads=1), 3), after(PflResearch(some, threads=1), 3))


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(240)
def test_flower_ends_in_the_parameters_of_the_plain_loop_and_leaves_nothing_behind(tiny):
    pytest.importorskip("ray")
    assert FlowerRay.missing() is None
    peer = FlowerRay(tiny, cpus=2, timeout=100)
    try:
        peer.start()
        session, folder = peer.process.pid, peer.folder
        # The app, two Ray servers at least and two actors.
        assert len(peer.processes()) >= 5
        assert_same(tiny.model().state_dict(), peer.parameters())
        peer.round()
        peer.round()
        found = peer.parameters()
    finally:
        peer.stop()
    assert session_processes(session) == []
    assert not folder.exists()
    assert_same(after(PlainLoop(tiny, threads=1), 2), found)
    peer.stop()


@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(120)
def test_flower_that_ends_early_says_so_and_leaves_nothing_behind(tiny, monkeypatch):
    pytest.importorskip("ray")
    # A signal before the app can say anything stands for any crash of it.
    peer = FlowerRay(tiny, cpus=1, timeout=60)
    started = []

    def killed():
        started.append(peer.process.pid)
        os.kill(peer.process.pid, signal.SIGKILL)
        return FlowerRay._hear(peer)

    monkeypatch.setattr(peer, "_hear", killed)
    with pytest.raises(RuntimeError, match="simulation ended"):
        peer.start()
    assert session_processes(started[0]) == []
    with pytest.raises(RuntimeError, match="call start"):
        peer.round()


def test_attacked_inputs_stay_in_the_ball_and_lose_more(tiny):
    model, (x, y), attack = tiny.model(), tiny.examples(0), Pgd(epsilon=0.1, steps=5)
    found = plain.attacked(model, x, y, attack)
    assert float((found - x).abs().max()) <= 0.1 + 1e-6
    assert 0.0 <= float(found.min()) <= float(found.max()) <= 1.0
    with torch.no_grad():
        assert float(F.cross_entropy(model(found), y)) > float(F.cross_entropy(model(x), y))


def test_a_paced_loop_takes_the_steps_of_its_epochs_easy_examples_first():
    # 400 images, batches of 10, 5 epochs: 200 steps. First 400 * 0.2 = 80 images, 8 steps; then 400 (0.2 + 0.8 * 8/160)
    # = 96.
    work = works.curriculum()
    (x, y), model = work.examples(0), work.model()
    passes = list(plain.paced(model, x, y, work.orders(0, 0), work))
    assert [len(passes[0]), len(passes[1])] == [80, 96]
    assert sum(-(-len(one) // 10) for one in passes) == 200
    with torch.no_grad():
        losses = F.cross_entropy(model(x), y, reduction="none")
    assert set(passes[0].tolist()) == set(losses.argsort(stable=True)[:80].tolist())


# Two devices first, for JAX asks once for their number.
@pytest.mark.parametrize("cores", [2, 1])
@pytest.mark.parametrize("form", ["vmap", "scan"])
@pytest.mark.xdist_group("jax")
def test_jax_ends_in_the_parameters_of_the_lean_loop(tiny, form, cores):
    pytest.importorskip("jax", reason="JAX is installed in an environment of its own: docs/benchmarks.md")
    for work in (tiny, replace(tiny, per_round=3)):
        peer = JaxHand(work, form, cores, draw=shared_orders)
        assert peer.missing() is None
        assert_same(after(LeanLoop(work, threads=1), 3), after(peer, 3))


def test_jax_says_where_it_is_not_installed_or_the_network_is_not_written_in_it(tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert JaxHand(tiny, "scan", cores=1).missing() is None
    assert JaxHand(replace(tiny, model=networks.transformer), "scan", cores=1).missing() == "not written in JAX here"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert JaxHand(tiny, "scan", cores=1).missing() == "jax is not installed"


def test_orders_from_sorted_keys_are_permutations_with_the_padding_behind(tiny):
    drawn = sorted_keys(tiny, 0, range(5), width := max(map(len, tiny.clients)) + 3)
    assert drawn.shape == (5, tiny.epochs, width)
    for client, of in enumerate(drawn.tolist()):
        n = len(tiny.clients[client])
        assert all(sorted(order[:n]) == list(range(n)) and len(set(order)) == width for order in of)
    assert not np.array_equal(drawn, sorted_keys(tiny, 1, range(5), width)), "rounds draw anew"
    assert len({tuple(order) for order in drawn.reshape(-1, width).tolist()}) > tiny.epochs, "so do epochs and clients"


def test_buckets_of_jax_pad_as_little_as_can_be():
    # Nine different numbers of passes in eight buckets: the two that are joined cost least where the first is alone
    # and the next is nearest. 9 with 10, padded by 1 pass; any other two by more.
    passes = np.array([1, 4, 9, 10, 15, 20, 30, 40, 50])
    assert buckets(passes) == [(0, 1), (1, 2), (2, 4), *((place, place + 1) for place in range(4, 9))]
    assert buckets(np.array([7, 7, 7])) == [(0, 3)]


@pytest.mark.parametrize("make", [getattr(works, name) for name in AVERAGING])
def test_a_network_as_a_function_is_its_module(make, monkeypatch):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    few = torch.rand(3000, 3, 28, 28), torch.zeros(3000, dtype=torch.int64)
    monkeypatch.setattr(works, "_random_images", lambda shape, **_: (few[0][:, : shape[0]], few[1]) * 2)
    work = make()
    model, x = work.model(), work.x[:3]
    torch.testing.assert_close(work.forward(list(model.parameters()), x), model(x))
