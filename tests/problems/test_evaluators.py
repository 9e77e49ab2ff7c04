"""Evaluation in processes: the same answers as in this one, and an end to what hangs, dies or cannot be sent."""

import importlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.problems.evaluators import Answer, Failure, Processes, Scalar, Stacked, Vectorised, real

pytestmark = pytest.mark.xdist_group("evaluation")  # for its tests count the children of their process

SIMULATORS = '''
import os
import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass
class Sphere:
    centre: float

    def __call__(self, x):
        time.sleep(0.02 * float(x[0] > 0.5))  # so that answers overtake each other
        return ((x - self.centre) ** 2).sum()


def pick(x):
    """Misbehave as the first coordinate says."""
    what = int(x[0])
    if what == 1:
        raise ValueError("no value\\nhere")
    if what == 2:
        time.sleep(3600)
    if what == 3:
        os._exit(7)
    if what == 4:
        return 1j
    if what == 5:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        with open(os.environ["CHILD"], "w") as file:
            file.write(str(child.pid))
        child.wait()
    if what == 6:
        return float(os.getpid())
    if what == 7:
        time.sleep(0.3)
        raise KeyError("slow")
    return float(x[0])
'''


@pytest.fixture
def simulators(tmp_path, monkeypatch):
    """A module of its own, which a process loads without loading this one and PyTorch."""
    (tmp_path / "simulators_of_test.py").write_text(SIMULATORS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("simulators_of_test")
    del sys.modules["simulators_of_test"]


@pytest.fixture
def pools():
    """Make pools that are closed at the end, whereupon nothing of them is left."""
    before, made = set(multiprocessing.active_children()), []

    def make(*given, **options):
        made.append(Processes(*given, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
    assert set(multiprocessing.active_children()) <= before


def ask(functions, clients, x):
    return [answer.found for answer in functions.ask(torch.tensor(clients), torch.as_tensor(x, dtype=torch.float64))]


def points(*numbers):
    """One client, a point [1] for each number."""
    return [[[float(number)] for number in numbers]]


@pytest.mark.parametrize("workers", [1, 3])
def test_answers_are_those_of_this_process_whatever_the_number_of_workers(simulators, pools, workers):
    functions = [simulators.Sphere(0.1 * client) for client in range(4)]
    clients, x = torch.tensor([2, 0, 3]), torch.rand(3, 5, 4, dtype=torch.float64, generator=torch.manual_seed(1))
    here = list(Scalar(functions).ask(clients, x))
    assert here[6] == Answer("client 0", (), float(((x[1, 1].numpy() - 0.0) ** 2).sum()))
    pool = pools(functions, workers)
    for _ in range(2):
        assert [(answer.who, answer.shape, float(answer.found)) for answer in pool.ask(clients, x)] == [
            (answer.who, answer.shape, float(answer.found)) for answer in here
        ]
    assert pool.num_clients == Scalar(functions).num_clients == 4


def test_processes_start_when_asked_stay_and_end(simulators, pools):
    before = len(multiprocessing.active_children())
    pool = pools([simulators.pick], 2)
    assert len(multiprocessing.active_children()) == before
    first = ask(pool, [0], points(6, 6, 6, 6))
    second = ask(pool, [0], points(6, 6, 6, 6))
    own = {float(found) for found in first + second}
    assert len(own) <= 2
    assert os.getpid() not in own
    pool.close()
    assert len(multiprocessing.active_children()) == before
    assert ask(pool, [0], points(0.5)) == [0.5]


def test_processes_end_with_the_pool(simulators):
    before = len(multiprocessing.active_children())
    pool = Processes([simulators.pick], 1)
    ask(pool, [0], points(0.5))
    assert len(multiprocessing.active_children()) == before + 1
    del pool
    assert len(multiprocessing.active_children()) == before


def test_nothing_outlives_the_interpreter(simulators, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, simulators_of_test\n"
        "from fedsim.problems.evaluators import Processes\n"
        "if __name__ == '__main__':\n"
        "    pool = Processes([simulators_of_test.pick], 1)\n"
        "    print(int(pool.ask(torch.tensor([0]), torch.full((1, 1, 1), 6.0))[0].found))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    assert not ended.stderr
    assert not alive(int(ended.stdout))


def alive(process):
    """Whether it exists, but as a zombie."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_raises_hangs_or_dies_is_a_failure_and_the_rest_go_on(simulators, pools, workers):
    pool = pools([simulators.pick], workers, timeout=0.5, hurry=False)
    began = time.monotonic()
    found = ask(pool, [0], points(0.5, 1, 2, 3, 0.25))
    assert found == [
        0.5,
        Failure("raised ValueError: no value here"),
        Failure("took longer than 0.5 s"),
        Failure("ended its process with exit code 7"),
        0.25,
    ]
    assert time.monotonic() - began < 60
    assert ask(pool, [0], points(0.75, 0.5)) == [0.75, 0.5]


def test_time_is_counted_for_each_evaluation(simulators, pools):
    pool = pools([simulators.Sphere(0.0)], 1, timeout=0.5)
    # 40 evaluations of 0.02 s are 0.8 s together; to start the process is not counted either.
    assert [float(found) for found in ask(pool, [0], points(*[1.0] * 40))] == [1.0] * 40


def test_what_a_killed_process_had_started_is_killed_too(simulators, pools, tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    pool = pools([simulators.pick], 1, timeout=3.0)
    assert ask(pool, [0], points(5)) == [Failure("took longer than 3 s")]
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


@pytest.mark.parametrize("workers", [1, 3])
def test_in_a_hurry_the_first_failure_is_the_same_and_the_rest_is_left(simulators, pools, workers):
    pool = pools([simulators.pick], workers, hurry=True)
    # With several workers, the failure of the second point comes before that of the first, which takes 0.3 s.
    found = ask(pool, [0], points(7, 1, *[0.5] * 4000))
    assert found[0] == Failure("raised KeyError: 'slow'")
    assert found[-1] is None


def test_a_wrong_answer_is_a_failure_of_another_kind(simulators, pools):
    (found,) = ask(pools([simulators.pick], 1, hurry=False), [0], points(4))
    assert found == Failure("returned complex128 of shape (), not real numbers of shape ()", wrong=True)


def test_a_process_that_died_while_idle_is_replaced(simulators, pools):
    pool = pools([simulators.pick], 1)
    (number,) = ask(pool, [0], points(6))
    (process,) = (child for child in multiprocessing.active_children() if child.pid == int(number))
    process.kill()
    process.join(30)
    (other,) = ask(pool, [0], points(6))
    assert not isinstance(other, Failure)
    assert other != number


def test_an_interrupted_call_leaves_no_answer_for_the_next(simulators, pools, monkeypatch):
    pool, waited = pools([simulators.pick], 1), []
    ask(pool, [0], points(0.5))

    def interrupted(*given):
        waited.append(given)
        if len(waited) == 2:
            raise KeyboardInterrupt
        return wait(*given)

    with monkeypatch.context() as patch:
        patch.setattr("fedsim.parallel.workers.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(pool, [0], points(0.25, 0.125))
    # The process is at the second point, which this call does not have.
    assert ask(pool, [0], points(0.75)) == [0.75]


def test_several_threads_may_ask(simulators, pools):
    pool, found = pools([simulators.Sphere(0.0)], 2), {}

    def work(number):
        found[number] = [float(value) for value in ask(pool, [0], points(*[number] * 5))]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [float(number**2)] * 5 for number in range(4)}


def test_functions_that_cannot_be_sent_are_refused():
    with pytest.raises(
        InputError, match="functions = 1 functions: cannot be sent to processes; define them at the top"
    ):
        Processes([lambda x: 0.0], 1)


def test_functions_that_a_process_cannot_load_are_refused(simulators, pools, tmp_path):
    pool = pools([simulators.pick], 2)
    (tmp_path / "simulators_of_test.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"raised ModuleNotFoundError.*: define functions at the top of a module"):
        ask(pool, [0], points(0.5, 0.5))


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from fedsim.problems.evaluators import Processes\n"
        "pool = Processes([abs], 1)\n"
        "pool.ask(torch.tensor([0]), torch.ones(1, 1, 1))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert "below `if __name__ == '__main__':`" in ended.stderr


# In this process


def test_functions_get_copies():
    def spoil(x):
        x *= 0
        return x.sum(-1)

    x = torch.ones(2, 3, 4, dtype=torch.float64)
    for functions in (
        Stacked(lambda clients, x: spoil(x), 2),
        Vectorised([spoil, spoil]),
        Vectorised([spoil, spoil], arrays=True),
        Scalar([spoil, spoil]),
    ):
        assert len(list(functions.ask(torch.tensor([0, 1]), x))) in (1, 2, 6)
        assert (x == 1).all()


def test_a_stacked_function_that_raises_is_asked_client_by_client():
    def picky(clients, x):
        if 1 in clients:
            raise ValueError("not 1")
        return x.sum(-1)

    x = torch.arange(6.0).view(3, 2, 1)
    answers = list(Stacked(picky, 3).ask(torch.tensor([0, 1, 2]), x))
    assert [(answer.who, answer.shape) for answer in answers] == [(f"client {client}", (1, 2)) for client in range(3)]
    assert answers[0].found.tolist() == [[0.0, 1.0]]
    assert answers[1].found.reason == "raised ValueError: not 1"
    assert isinstance(answers[1].found.cause, ValueError)
    assert answers[2].found.tolist() == [[4.0, 5.0]]


@pytest.mark.parametrize(
    ("found", "value"),
    [(2, 2.0), (np.float32(0.5), 0.5), (np.array(3), 3.0), (torch.tensor(1.5), 1.5), (float("inf"), float("inf"))],
)
def test_numbers_of_all_sorts_are_values(found, value):
    array = real(found, ())
    assert array.dtype == np.float64
    assert float(array) == value


@pytest.mark.parametrize(
    ("found", "described"),
    [
        (None, "NoneType"),
        ("1.0", "str"),
        (1j, "complex128 of shape ()"),
        (True, "bool of shape ()"),
        ([1.0], "float64 of shape (1,)"),
        ([[1.0], [1.0, 2.0]], "list"),
        (np.datetime64("2024-01-01"), "datetime64[D] of shape ()"),
        (object(), "object"),
    ],
)
def test_anything_else_is_described(found, described):
    assert real(found, ()) == Failure(f"returned {described}, not real numbers of shape ()", wrong=True)
