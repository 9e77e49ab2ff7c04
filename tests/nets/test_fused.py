"""Compiled local training held to autograd, to the plain loop, and to itself in any company and on any cores."""

from __future__ import annotations

import importlib.util
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from descents import C, N, assert_close, by_autograd, changed, described, normal
from torch import nn

import fedsim
import fedsim.engine.executor as executors
import fedsim.running.resume as resuming
from clients.optimizers.sgd import Sgd
from fedsim.core.errors import InputError
from fedsim.exchange.messages import Order
from fedsim.nets import fused as module
from fedsim.nets.descent import Rule
from fedsim.nets.fused import ACTIVATIONS, chain_of, fused
from fedsim.nets.losses import CrossEntropy, LogCosh, SquaredError
from fedsim.nets.stack import Layout
from fedsim.parallel import cores
from fedsim.running.build import build_executor, build_simulation
from fedsim.running.runner import versions
from fedsim.running.stored import MODEL
from fedsim.running.sweep import Point, run_points
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

pytest.importorskip("numba")  # which has no wheels for some machines
from fedsim.nets.kernels import compiling, rules, tiles
from fedsim.nets.kernels.exponentials import exp, expm1

pytestmark = pytest.mark.xdist_group("fused")  # so that one process compiles


def chain(activation: nn.Module, *sizes: int) -> nn.Sequential:
    """Linear layers of these sizes, the second without a bias."""
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = nn.Linear(inputs, outputs, bias=number != 1, dtype=torch.float64)
        for seed, own in enumerate(layer.parameters()):
            own.data = normal(*own.shape, seed=10 * number + seed) / inputs**0.5
        layers += [layer, activation]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_have_the_derivatives_of_autograd(kind):
    activation = kind(0.3) if kind in (nn.LeakyReLU, nn.ELU) else kind()
    model = chain(activation, 6, 17, 5, 3)
    loop, descent = described(model, CrossEntropy(), decay=0.1)
    assert_close(loop.descend(descent), by_autograd(model, CrossEntropy(), descent))


@pytest.mark.parametrize(
    "loss",
    [CrossEntropy(), SquaredError(), LogCosh(), CrossEntropy(label_smoothing=0.2)],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_have_the_derivatives_of_autograd(loss):
    model = chain(nn.Tanh(), 6, 8, 4 if isinstance(loss, CrossEntropy) else 1)
    loop, descent = described(model, loss)
    assert_close(loop.descend(descent), by_autograd(model, loss, descent))


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (16, 4), (17, 33, 5), (40, 7, 31, 10)], ids=str)
def test_sizes_that_fill_no_vector(sizes, width):
    model = chain(nn.ReLU(), *sizes)
    loop, descent = described(model, CrossEntropy(), width)
    assert_close(loop.descend(descent), by_autograd(model, CrossEntropy(), descent))


def test_the_sums_of_the_losses_are_those_of_each_client():
    loop, descent = described(chain(nn.ReLU(), 6, 4), CrossEntropy())
    found = loop.descend(descent)
    each = torch.split(found.losses, descent.steps.tolist())
    assert torch.allclose(found.total, torch.stack([own.sum() for own in each]), rtol=1e-14)


def test_starts_and_shifts_of_each_client_are_its_own():
    """As with those of one client for all, each by itself."""
    loop, descent = described(chain(nn.ReLU(), 6, 4), CrossEntropy())
    starts, shifts = (normal(C, len(descent.start), seed=seed) for seed in (7, 8))
    each = loop.descend(changed(descent, start=starts, shift=shifts)).params
    for client in range(C):
        alone = loop.descend(changed(descent, start=starts[client], shift=shifts[client])).params
        assert torch.equal(each[client], alone[client])
    assert not torch.equal(each, loop.descend(changed(descent, start=starts)).params)


def test_rates_of_each_client_are_its_own():
    """As with those of one client for all, each by itself, whose rates are told either way."""
    loop, descent = described(chain(nn.ReLU(), 6, 4), CrossEntropy(), decay=0.1)
    rates = 0.1 + 0.1 * torch.arange(C * 3, dtype=torch.float64).view(C, 3)
    each = loop.descend(changed(descent, rates=rates)).params
    for client in range(C):
        assert torch.equal(each[client], loop.descend(changed(descent, rates=rates[client].tolist())).params[client])
        assert client == 0 or not torch.equal(
            each[client], loop.descend(changed(descent, rates=rates[0].tolist())).params[client]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_change_is_where_clients_end_less_where_they_began(dtype):
    loop, descent = described(chain(nn.ReLU(), 6, 9, 4), CrossEntropy())
    starts = normal(C, len(descent.start), seed=7).to(dtype)
    for start in (starts, starts[0]):
        descent = changed(descent, start=start, x=descent.x.to(dtype))
        ends = loop.descend(descent).params
        assert torch.equal(loop.descend(changed(descent, change=True)).params, ends - start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 1e38])
def test_a_single_number_that_is_not_finite_is_seen(dtype, value):
    """One that overflows: parameters are finite at both ends, and their difference is not."""
    loop, descent = described(chain(nn.ReLU(), 6, 9, 4), CrossEntropy())
    starts = normal(C, len(descent.start), seed=7).to(dtype)
    starts[1, -1] = value
    descent = changed(descent, start=starts, x=descent.x.to(dtype), rates=[0.0] * len(descent.rates))
    found = loop.descend(descent)
    assert found.finite.tolist() == [True, np.isfinite(value), True, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_cores_changes_no_bit(dtype, monkeypatch):
    model = chain(nn.GELU(), 20, 33, 10)
    loop, descent = described(model, CrossEntropy(), decay=0.1)
    single = {name: getattr(descent, name).to(dtype) for name in ("start", "x")}
    descent = changed(descent, **single)
    whole = loop.descend(descent)
    seen = []
    monkeypatch.setattr(module, "WORTH_A_CORE", 0)
    monkeypatch.setattr(module, "spread", lambda train, parts: [*map(train, reversed(parts)), seen.append(len(parts))])
    for count in (1, 2, 3):
        monkeypatch.setattr(cores, "given", lambda: count)  # noqa: B023
        found = loop.descend(descent)
        assert torch.equal(found.params, whole.params)
        assert torch.equal(found.losses, whole.losses)
    assert seen == [4, 5, 5]


def test_clients_on_threads_of_their_own_come_to_the_same(monkeypatch):
    """Which none of them waits for: the loop holds no lock."""
    loop, descent = described(chain(nn.Tanh(), 20, 33, 10), CrossEntropy())
    whole = loop.descend(descent)
    monkeypatch.setattr(module, "WORTH_A_CORE", 0)
    monkeypatch.setattr(cores, "given", lambda: 2)
    cores._pool.cache_clear()
    try:
        for _ in range(20):
            assert torch.equal(loop.descend(descent).params, whole.params)
    finally:
        cores._pool().shutdown()
        cores._pool.cache_clear()


def test_a_sweep_in_processes_comes_to_the_same_as_threads_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH_A_CORE", 0)
    monkeypatch.setattr(cores, "given", lambda: 2)
    made = small(
        1,
        problem={"dataset": {"kind": "synthetic", "features": 8, "clients": 7, "examples_per_client": 12}},
        partition={"kind": "natural"},
        engine={"executor": "fused", "device": "cpu"},
    )
    fedsim.run(made, out=tmp_path / "here")
    (outcome,) = run_points([Point(made, tmp_path / "there")])
    assert outcome.status == "finished", outcome.reason
    assert (tmp_path / "there" / MODEL).read_bytes() == (tmp_path / "here" / MODEL).read_bytes()


def test_what_is_no_number_stays_with_its_client():
    loop, descent = described(chain(nn.ReLU(), 6, 9, 4), CrossEntropy())
    x = descent.x.clone()
    x[2 * N : 3 * N, 1] = torch.nan
    x[3 * N : 4 * N, 1] = torch.inf
    clean, found = loop.descend(descent), loop.descend(changed(descent, x=x))
    bad = torch.isin(torch.arange(C), torch.tensor([2, 3]))
    assert not torch.isfinite(found.params[bad]).all(dim=1).any()
    assert torch.equal(found.finite, ~bad)
    assert torch.equal(found.params[~bad], clean.params[~bad])


EVERYBODY = {"kind": "uniform", "fraction": 1.0}
CLIENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "proximal": {"proximal_mu": 0.2, "inverse_decay": 0.5},
    "one example": {"epochs": None, "steps": 5, "batch_size": 1},
    "all examples": {"batch_size": "full"},
    "momentum": {"optimizer": {"kind": "sgd", "momentum": 0.9}, "proximal_mu": 0.2},
    "nesterov": {"optimizer": {"kind": "sgd", "momentum": 0.9, "nesterov": True}, "weight_decay": 0.1},
    "clipping": {"clip_norm": 0.05, "weight_decay": 0.1},
    "adam": {"optimizer": {"kind": "adam", "beta1": 0.8}, "lr": 0.01, "weight_decay": 0.1},
    "lion": {"optimizer": "lion", "lr": 0.01, "weight_decay": 0.1},
    "amsgrad": {"optimizer": {"kind": "amsgrad", "beta2": 0.5}, "lr": 0.01, "clip_norm": 0.5},
    "amsgrad, paper": {"optimizer": {"kind": "amsgrad", "variant": "paper", "epsilon": 0.01}, "lr": 0.01},
    "adabelief": {"optimizer": {"kind": "adabelief", "epsilon": 1e-8}, "lr": 0.01, "proximal_mu": 0.2},
    "diffgrad": {"optimizer": "diffgrad", "lr": 0.01, "weight_decay": 0.1},
    "adagrad": {"optimizer": "adagrad", "lr": 0.01, "weight_decay": 0.1},
    "adagrad_norm": {"optimizer": "adagrad_norm", "lr": 0.1, "weight_decay": 0.1},
    "normalised": {"optimizer": "normalised", "lr": 0.1, "proximal_mu": 0.2},
    "induced": {"optimizer": {"kind": "induced", "xi": 1.0}, "weight_decay": 0.1},
    "dog": {"optimizer": "dog", "lr": 1.0, "weight_decay": 0.1},
    "dog, first step": {"optimizer": {"kind": "dog", "init_eta": 0.05}, "lr": 1.0, "clip_norm": 0.5},
    "a_dog": {"optimizer": {"kind": "a_dog", "reps_rel": 0.03}, "lr": 1.0},
    "curriculum": {"curriculum": {}},
    "defence": {"adversarial": {"kind": "standard", "attack": {"kind": "fgsm", "epsilon": 0.1, "domain": "none"}}},
}


@pytest.mark.parametrize("name", [*CLIENTS, "scaffold", "feddyn"])
def test_runs_are_those_of_the_plain_loop(name):
    kind = name if name in ("scaffold", "feddyn") else "sgd"
    client = {"kind": kind, "epochs": 2, "batch_size": 4, "lr": 0.1} | CLIENTS.get(name, {})
    client = {option: value for option, value in client.items() if value is not None}
    tables = {"client": client, "strategy": "fedavg" if kind == "sgd" else kind}

    def ran(executor: str, dtype: torch.dtype) -> fedsim.Result:
        problem = small_problem(dtype)
        return fedsim.run(small(2, engine={"executor": executor}, **tables), problem=problem, save=False)

    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found, loop = ran("fused", dtype), ran("loop", dtype)
        assert torch.allclose(found.params, loop.params, rtol=0, atol=tolerance)
        losses = ([row["train_loss"] for row in one.history] for one in (found, loop))
        assert np.allclose(*losses, rtol=tolerance)


@pytest.mark.parametrize("kind", ["sgd", "scaffold", "feddyn", "curriculum"])
def test_clients_come_to_the_same_in_one_cohort_and_in_several(kind):
    """Which are sorted by steps; one is not."""
    own = {"kind": kind} if kind != "curriculum" else {"kind": "sgd", "curriculum": {}}
    tables = {"client": own | {"epochs": 2, "batch_size": 4, "lr": 0.1}, "strategy": kind}
    tables |= {"strategy": "fedavg"} if "sgd" in own.values() else {}
    found = []
    for memory in (2**28, 1):
        problem, engine = small_problem(torch.float32), {"executor": "fused"}
        simulation = build_simulation(small(2, engine=engine, selection=EVERYBODY, **tables), problem)
        executor = simulation.parts.engine.executor
        executor.memory = memory
        assert executor.chunk == 1 if memory == 1 else executor.chunk > problem.num_clients
        simulation.step()
        simulation.step()
        found.append((simulation.params, executor.store.snapshot()))
    assert torch.equal(found[0][0], found[1][0])
    assert str(found[0][1]) == str(found[1][1])


def test_exponentials_are_right_to_the_last_bit_but_one():
    small_ones = -(10.0 ** np.linspace(-12, 2.8, 4096))
    for dtype, least in ((np.float32, -86.0), (np.float64, -700.0)):
        x = np.maximum(small_ones, least).astype(dtype)
        for kernel, reference in ((exp, np.exp), (expm1, np.expm1)):
            found = x.copy()
            compiling.jit(lambda vector, kernel=kernel: kernel(vector))(found)
            wanted = reference(x.astype(np.longdouble))
            assert float(np.max(np.abs(found - wanted) / np.spacing(np.abs(wanted).astype(dtype)))) < 1.5


@pytest.mark.parametrize(("dtype", "lanes"), [(np.float32, 16), (np.float64, 8)])
def test_the_length_of_the_vectors_of_products_changes_no_bit(dtype, lanes):
    """A [3, 48], C [3, 32], and the other factor as it is read: by `dots` [32, 48], by `broad` [48, 32]."""
    begin, c = 3 * 48, 3 * 48 + 48 * 32
    numbers = np.random.default_rng(0).standard_normal(c + 96).astype(dtype)
    wanted = numbers[:begin].reshape(3, 48).astype(np.float64)
    other, before = numbers[begin:c].astype(np.float64), numbers[c:].reshape(3, 32).astype(np.float64)
    made = []
    for nbytes in (32, 64):
        across, along = tiles._broad(3, 64 // nbytes, nbytes), tiles._dots(3, nbytes)

        @compiling.jit
        def product(w, dots, j, across=across, along=along):
            if dots:
                along(w, 0, 48, 48, 144 + j * 48, 48, 1680 + j, 32)
            else:
                across(w, 0, 48, 1, 48, 144 + j, 32, 1680 + j, 32)

        for dots, by, right in ((True, 4, other.reshape(32, 48).T), (False, lanes, other.reshape(48, 32))):
            w = numbers.copy()
            for j in range(0, 32, by):
                product(w, dots, j)
            np.testing.assert_allclose(w[c:].reshape(3, 32), before + wanted @ right, rtol=1e-4, atol=1e-4)
            made.append(w.tobytes())
    assert made[:2] == made[2:]


def test_models_and_losses_without_a_loop_are_refused():
    class Own(CrossEntropy):
        pass

    model = chain(nn.ReLU(), 6, 5, 3)
    layout, x, y = Layout.of(dict(model.named_parameters())), normal(4, 6), torch.arange(4) % 3
    with pytest.raises(InputError, match="does not know the loss Own; take stacked"):
        fused(model, layout, Own(), x, y)
    with pytest.raises(InputError, match=r"^problem\.model = 3: its outputs are too few for targets up to 3"):
        fused(model, layout, CrossEntropy(), x, y + 1)
    assert chain_of(model, layout) is not None
    for other in (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU()),
        nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(6, 5), nn.GELU("tanh"), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)),
        nn.Sequential(nn.Flatten(0), nn.Linear(6, 5)),
        nn.Linear(6, 3),
    ):
        with pytest.raises(
            InputError, match=r"^engine\.executor = fused: it is for linear layers with ReLU, .*stacked$"
        ):
            fused(other, Layout.of(dict(other.named_parameters())), CrossEntropy(), x, y)


def test_a_layer_that_comes_twice_is_refused():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert chain_of(model, Layout.of(dict(model.named_parameters()))) is None


def test_black_boxes_and_machines_without_numba_are_refused(monkeypatch):
    with pytest.raises(InputError, match=r"^engine\.executor = fused: there is no model to train; take auto$"):
        fedsim.run(
            small(1, engine={"executor": "fused"}, client={"kind": "fedzo", "steps": 1}, strategy="fedzo"),
            problem=fedsim.black_box([np.sum] * 6, kind="scalar", dimension=1, device="cpu"),
            save=False,
        )
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^engine\.executor = fused: numba is not installed"):
        fedsim.run(small(1, engine={"executor": "fused"}), problem=small_problem(), save=False)


def test_a_run_goes_on_with_what_it_was_compiled_by(tmp_path, monkeypatch):
    """Another version of numba is as another version of PyTorch."""

    def interrupt(done: Any) -> None:
        raise KeyboardInterrupt

    made = small(2, engine={"executor": "fused"}, checkpoint={"every": 1}, problem={"dataset": "digits"})
    assert fedsim.run(made, out=tmp_path / "run", callbacks=[interrupt]).status == "interrupted"
    monkeypatch.setattr(resuming, "versions", lambda: versions() | {"numba": "0.1"})
    with pytest.raises(InputError, match=r"^versions\.numba = 0\.1: the run began with \d"):
        fedsim.resume(tmp_path / "run")
    monkeypatch.undo()
    assert fedsim.resume(tmp_path / "run").status == "finished"


CALLER = """
from callee import value
from fedsim.nets.kernels.compiling import entry

@entry
def fill(x):
    x[:] = value()
"""
CALLEE = "from fedsim.nets.kernels.compiling import part\n\n\n@part\ndef value():\n    return {}\n"


def imported(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, name, found)
    spec.loader.exec_module(found)
    return found


def filled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[float, bool]:
    """What a kernel of these files gives, and whether it had been compiled before."""
    imported(folder, "callee", monkeypatch)
    kernel, x = imported(folder, "caller", monkeypatch).fill, np.zeros(1)
    kernel(x)
    return float(x[0]), bool(kernel.stats.cache_hits)


def test_what_is_kept_follows_every_file_of_the_kernels(tmp_path, monkeypatch):
    """An edit of the file of a function that is compiled into another's; numba looks at the other's file only."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    (folder / "caller.py").write_text(CALLER)
    (folder / "callee.py").write_text(CALLEE.format(1))
    assert filled(folder, monkeypatch) == (1.0, False)
    assert filled(folder, monkeypatch) == (1.0, True)
    (folder / "callee.py").write_text(CALLEE.format(2))
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    assert filled(folder, monkeypatch) == (2.0, False)


def test_rules_are_compiled_where_they_are_asked_for_and_then_kept(tmp_path, monkeypatch):
    """Plain steps ask for none."""
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    rule = compiling.Rule(rules.lion._function)
    assert not [*tmp_path.rglob("*.nbi")]
    single, double = (rule.address(kind) for kind in ("float32", "float64"))
    assert single != double
    assert rule.address("float32") == single
    assert len([*tmp_path.rglob("rules.lion-*.nbi")]) == 1
    assert len([*tmp_path.rglob("rules.lion-*.nbc")]) == 2

    def refused(kind: str) -> int:
        raise AssertionError(kind)

    monkeypatch.setattr(rules.sgd, "address", refused)
    loop, descent = described(chain(nn.ReLU(), 6, 4), CrossEntropy())
    loop.descend(descent)
    with pytest.raises(AssertionError, match="float64"):
        loop.descend(changed(descent, rule=Rule(Sgd(), 1.0, 0.0, 0.0)))


def test_damaged_files_are_made_again_and_a_folder_that_cannot_be_is_done_without(tmp_path, monkeypatch):
    folder, cache = tmp_path / "kernels", tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("FEDSIM_CACHE", str(cache))
    (folder / "caller.py").write_text(CALLER)
    (folder / "callee.py").write_text(CALLEE.format(1))
    filled(folder, monkeypatch)
    for damage in (b"", b"nonsense", os.urandom(200)):
        for kept in (*cache.rglob("*.nbi"), *cache.rglob("*.nbc")):
            kept.write_bytes(damage)
        assert filled(folder, monkeypatch) == (1.0, False)
        assert filled(folder, monkeypatch) == (1.0, True)
    monkeypatch.setenv("FEDSIM_CACHE", str(folder / "caller.py"))
    assert filled(folder, monkeypatch) == (1.0, False)


def test_nobody_is_trained_in_no_time():
    problem = small_problem(torch.float32)
    executor = build_executor(small(1, engine={"executor": "fused"}), problem)
    nobody = Order("train", torch.zeros(0, dtype=torch.int64), {"params": problem.initial()})
    assert executor.execute(executor.assign(nobody)).payload["delta"].shape == (0, problem.dimension)


def test_what_a_client_writes_over_its_change_is_looked_at(monkeypatch):
    """Of which the loop had noted that it is finite."""
    problem = small_problem(torch.float32)
    executor = build_executor(small(1, engine={"executor": "fused"}), problem)
    kind, clients = type(executor.client), torch.arange(3)
    train = kind.train

    def spoilt(self: Any, cohort: Any) -> Any:
        update = train(self, cohort)
        update.payload["delta"][1, 0] = torch.nan
        return update

    monkeypatch.setattr(kind, "train", spoilt)
    order = Order("train", clients, {"params": problem.initial()})
    assert executor.execute(executor.assign(order)).finite.tolist() == [True, False, True]


def test_auto_compiles_what_is_worth_it(monkeypatch, capsys):
    """Of 6 clients with 37 examples, 1 to 12 each, in batches of at most 4: 3 x 4 x 83 multiply-adds a step."""

    def chosen(**tables: Any) -> str:
        return build_executor(small(1, selection={"kind": "uniform", "fraction": 1.0}, **tables), problem).name

    problem = small_problem()
    client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1}
    steps = 2 * sum(-(-size // 4) for size in problem.sizes.tolist())
    monkeypatch.setattr(executors, "WORTH_COMPILING", 3 * 4 * 83 * steps)
    assert chosen(client=client) == "fused"
    assert chosen(client=client | {"epochs": 1}) == "stacked"
    assert chosen(client=client, engine={"executor": "stacked"}) == "stacked"
    attacked = {"adversarial": {"kind": "standard", "attack": {"kind": "fgsm", "epsilon": 0.1, "domain": "none"}}}
    assert chosen(client=client | attacked) == "stacked"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert chosen(client=client) == "stacked"
    assert capsys.readouterr().err == (
        "fedsim: warning: numba is not installed, with which rounds would be compiled; clients are stacked\n"
    )
