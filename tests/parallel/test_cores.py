"""Cores: who takes how many, for how long, and that it changes no byte of a run."""

from __future__ import annotations

import multiprocessing
import re
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fedsim
import fedsim.engine.executor as executors
from fedsim.engine.executor import Executor
from fedsim.nets.plain import PlainLoop
from fedsim.parallel import cores
from fedsim.parallel.cores import at_most, one_core_an_operation, spread
from fedsim.running.build import build_executor, build_simulation, in_processes
from fedsim.running.stored import CLIENTS, CONFIG, METRICS, MODEL, SUMMARY, TRACE
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

WALL = re.compile(rb'"wall": [^,}]*')


@pytest.fixture
def three(monkeypatch):
    """As on a machine with three cores."""
    monkeypatch.setattr(cores, "given", lambda: 3)
    cores._pool.cache_clear()
    yield
    cores._pool().shutdown()
    cores._pool.cache_clear()


def meeting(parties: int) -> list[str]:
    """The names of the threads on which items run that wait for each other."""
    barrier = threading.Barrier(parties, timeout=20)

    def meet(_: int) -> str:
        barrier.wait()
        return threading.current_thread().name

    return spread(meet, range(parties))


def test_items_run_on_as_many_threads_as_there_are_cores_and_come_back_in_order(three):
    assert len(set(meeting(3))) == 3
    assert spread(lambda item: item * item, range(50)) == [item * item for item in range(50)]
    assert spread(lambda _: torch.get_num_threads(), range(8)) == [1] * 8


def test_a_block_takes_no_more_cores_than_it_says_and_leaves_none_of_that_behind(three):
    before = torch.get_num_threads()
    with at_most(2):
        assert cores.cores() == 2
        assert len(set(meeting(2))) == 2
        with at_most(None), at_most(9):  # of those that there are
            assert cores.cores() == 2
        with at_most(1):
            seen = spread(lambda _: (threading.current_thread(), cores.cores(), torch.get_num_threads()), range(4))
            assert seen == [(threading.main_thread(), 1, 1)] * 4
        elsewhere = []
        other = threading.Thread(target=lambda: elsewhere.append(cores.cores()))
        other.start()
        other.join()
        assert elsewhere == [3]  # another run may have begun there
        assert cores.cores() == 2
    assert (cores.cores(), torch.get_num_threads()) == (3, before)
    assert not hasattr(cores._own, "cores")


def test_work_spread_within_spread_work_stays_on_its_core(three):
    """As an attack's classifiers are asked by clients that are spread themselves: threads would wait for threads."""
    outer = spread(lambda row: spread(lambda column: 10 * row + column, range(3)), range(4))
    assert outer == [[10 * row + column for column in range(3)] for row in range(4)]
    same = spread(lambda _: len(set(spread(lambda _: threading.current_thread(), range(9)))), range(6))
    assert same == [1] * 6


def test_the_first_error_of_all_is_raised_when_no_core_is_at_work(three):
    """Of items 2 and 3, which run at once, that of item 2, though it comes later; what follows is not begun."""
    late, begun, ended = threading.Event(), [], []

    def work(item: int) -> None:
        begun.append(item)
        if item == 3:
            late.set()
            raise ValueError(item)
        if item == 2:
            late.wait(20)
            raise ValueError(item)
        if item == 1:
            late.wait(20)
            ended.append(item)

    with pytest.raises(ValueError, match="2"):
        spread(work, [1, 2, 3, *range(10, 99)])
    assert ended == [1]
    assert len(begun) < 10


def test_one_core_an_operation_also_in_a_block_of_several(three):
    with at_most(2), one_core_an_operation():
        assert torch.get_num_threads() == 1
        assert cores.cores() == 2


def _child(found: Any) -> None:
    found.put(len(set(meeting(2))))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(three):
    assert len(set(meeting(2))) == 2
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    process = context.Process(target=_child, args=(found,))
    process.start()
    try:
        assert found.get(timeout=20) == 2
    finally:
        process.kill()
        process.join()


# Runs.

LENET = nn.Sequential(
    nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 3)
)
FUSED = pytest.param("fused", marks=pytest.mark.xdist_group("fused"))  # so that one process compiles


def left(folder: Path) -> dict[str, bytes]:
    files = {name: (folder / name).read_bytes() for name in (CLIENTS, METRICS, MODEL, SUMMARY, TRACE)}
    return {name: WALL.sub(b"", content) for name, content in files.items()}


@pytest.fixture
def eager(monkeypatch):
    """Whatever can be spread is spread, however small."""
    monkeypatch.setattr(executors, "WORTH_A_THREAD", 0)
    monkeypatch.setattr("fedsim.nets.plain.WORTH_A_THREAD", 0)
    monkeypatch.setattr("fedsim.nets.fused.WORTH_A_CORE", 0)
    monkeypatch.setattr("fedsim.problems.supervised.EVALUATED_AT_ONCE", 1)


@pytest.mark.parametrize("executor", ["stacked", "loop", FUSED])
@pytest.mark.usefixtures("three", "eager", "unpainted")
def test_a_run_leaves_the_same_bytes_on_any_number_of_cores(executor, tmp_path, monkeypatch):
    """With clients in one cohort or at most two in each, and the model judged in batches on all cores."""
    seen, act, train = set(), Executor.act, PlainLoop._train

    def noted(self: Executor, part: Any, state: Any) -> Any:
        seen.add(threading.current_thread().name)
        return act(self, part, state)

    def noted_within(self: PlainLoop, *work: Any) -> Any:
        seen.add(threading.current_thread().name)
        return train(self, *work)

    monkeypatch.setattr(Executor, "act", noted)
    monkeypatch.setattr(PlainLoop, "_train", noted_within)
    problem = small_problem(model=LENET, shape=(1, 8, 8)) if executor == "loop" else small_problem()
    if executor == "fused":
        pytest.importorskip("numba")  # which has no wheels for some machines
    found, threads = [], {}
    for chunk in (6, 2):
        monkeypatch.setattr(Executor, "_together" if executor == "loop" else "chunk", chunk)
        for count in (1, 2, None):
            seen.clear()
            out = tmp_path / f"{chunk}-{count}"
            engine = {"executor": executor} | ({} if count is None else {"cores": count})
            made = small(3, engine=engine, selection={"kind": "uniform", "fraction": 1.0}, evaluation={"clients": True})
            taken = set()
            fedsim.run(made, problem=problem, out=out, callbacks=[lambda _: taken.add(cores.cores())])  # noqa: B023
            assert taken == {count or 3}  # as what judges the model has them
            assert tomllib.loads((out / CONFIG).read_text())["engine"].get("cores") == count
            found.append(left(out))
            threads[chunk, count] = set(seen)
    assert all(files == found[0] for files in found)
    assert threads[chunk, 1] == {"MainThread"}
    assert threads[chunk, 2] | threads[chunk, None] > {"MainThread"}


@pytest.mark.usefixtures("three", "eager")
def test_an_executor_by_itself_keeps_to_its_cores(monkeypatch):
    """As in a node of Flower's, where no run is around it."""
    made, problem, seen = small(engine={"cores": 2}), small_problem(), []
    executor = build_executor(made, problem)
    monkeypatch.setattr(executors, "spread", lambda act, parts: [seen.append(cores.cores()), *map(act, parts)][1:])
    clients = torch.arange(problem.num_clients)
    orders = made.strategy.ask(build_simulation(made, problem).state, clients)[0]
    executor.execute(executor.assign(orders))
    assert seen == [2]
    assert in_processes(small(engine={"executor": "process", "cores": 2}), problem).keywords["workers"].count == 2
