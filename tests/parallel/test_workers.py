"""Worker processes: the same outcomes as here, in order; what dies is replaced, and nothing is left of any of it."""

from __future__ import annotations

import errno
import gc
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.core.errors import FedsimError
from fedsim.parallel import shared_memory
from fedsim.parallel.shared_memory import SMALL, Channel, UnreadableError
from fedsim.parallel.workers import Lost, Raised, TimedOut, WorkerError, Workers
from fedsim.problems.evaluators import Processes

pytestmark = pytest.mark.xdist_group("workers")  # for its tests count the children of their process

TASKS = '''
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def load(*given):
    return [os.getpid(), *given]


def load_slowly():
    time.sleep(0.5)


def load_together(folder):
    """Wait until two processes are here."""
    Path(folder, str(os.getpid())).touch()
    began = time.monotonic()
    while len(list(Path(folder).iterdir())) < 2:
        if time.monotonic() - began > 30:
            raise TimeoutError("alone")
        time.sleep(0.01)


def refuse():
    raise ValueError("no\\nway")


def leave():
    os._exit(5)


def held(held, task):
    time.sleep(0.001 * (task or 0))
    return held


def same(held, task):
    return task


def modules(held, task):
    return sorted({"torch", "numpy"} & set(sys.modules))


def loaded(x):
    return float("torch" in sys.modules)


def keep(held, task):
    held.append(task)
    return [float(kept.sum()) for kept in held[1:]]


def pick(held, task):
    """Misbehave as the task says."""
    what, *rest = task if isinstance(task, tuple) else (task,)
    if what == "raise late":
        time.sleep(0.1)
    if what in ("raise", "raise late"):
        raise KeyError(*rest)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("die once", "die once and raise"):
        if not Path(rest[0]).exists():
            Path(rest[0]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "die once and raise":
            raise KeyError("in the end")
    if what == "hang":
        time.sleep(3600)
    if what == "start":
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]).pid
    if what == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        return os.getpgrp() == os.getpid()
    if what == "unsendable":
        return lambda: None
    if what == "inner":
        from fedsim.parallel.workers import Workers

        with Workers(1, load) as inner:
            return inner.map(same, rest)
    return what


class Unreadable:
    def __reduce__(self):
        return refuse, ()


def resources(held, task):
    return rss(), len(os.listdir("/proc/self/fd"))


def rss():
    """Memory in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
'''


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A module of its own, which a process loads without loading this one."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "tasks_of_test.py").write_text(TASKS)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("tasks_of_test")
    del sys.modules["tasks_of_test"]


@pytest.fixture
def workers():
    """Make workers that are closed at the end, whereupon nothing of them is left."""
    before, made = set(multiprocessing.active_children()), []

    def make(*given, **options):
        made.append(Workers(*given, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
    assert set(multiprocessing.active_children()) <= before
    assert not segments()


def segments(process=None):
    """Names of shared memory of pools of a process."""
    return list(Path("/dev/shm").glob(f"fedsim-{process or os.getpid()}-*"))


def line(code):
    """The line of the tasks' module that begins with some code."""
    return next(n for n, text in enumerate(TASKS.splitlines(), 1) if text.strip().startswith(code))


def alive(process):
    """Whether it exists, but as a zombie."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def gone(*processes):
    """Whether they end soon."""
    deadline = time.monotonic() + 20
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(alive, processes))


# Outcomes


@pytest.mark.parametrize("count", [1, 3])
def test_outcomes_are_in_the_tasks_order_and_what_is_held_is_loaded_once(tasks, workers, count):
    pool = workers(count, tasks.load, "given")
    for _ in range(2):  # later tasks take less time, so that they overtake the first
        found = pool.map(tasks.held, iter([20, 10, 5, 0, 0]))
        assert [held[1:] for held in found] == [["given"]] * 5
        assert len({held[0] for held in found}) <= count
    assert pool.map(tasks.same, range(10)) == list(range(10))
    assert pool.map(tasks.same, []) == []


def test_they_start_with_the_first_work_one_a_task_and_all_at_once(tasks, workers, tmp_path):
    before = len(multiprocessing.active_children())
    pool = workers(3, tasks.load)
    assert len(multiprocessing.active_children()) == before
    pool.map(tasks.same, [1])
    assert len(multiprocessing.active_children()) == before + 1
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    assert workers(2, tasks.load_together, meeting).map(tasks.same, [1, 2]) == [1, 2]


def test_no_process_loads_what_it_does_not_need(tasks, workers):
    assert workers(1, tasks.load).map(tasks.modules, [None]) == [[]]
    functions = Processes([tasks.loaded], 1)
    (answer,) = functions.ask(torch.tensor([0]), torch.zeros(1, 1, 1))
    functions.close()
    assert answer.found == 0.0


def test_an_exception_comes_back_with_its_traceback_and_the_others_go_on(tasks, workers):
    pool = workers(2, tasks.load)
    raised, unsendable, good = pool.map(tasks.pick, [("raise", "a\nb"), "unsendable", "good"])
    assert raised.text == f"{tasks.__file__}, line {line('raise KeyError(*rest)')}: KeyError: 'a\\nb'"
    assert raised.reason == f"raised {raised.text}"
    assert raised.traceback.startswith("Traceback")
    assert "tasks_of_test.py" in raised.traceback
    assert unsendable.text.startswith("AttributeError: Can't ")
    assert good == "good"
    (unreadable,) = pool.map(tasks.same, [tasks.Unreadable()])
    assert unreadable.text.endswith(": ValueError: no way")
    with pytest.raises(AttributeError, match="local object"):
        pool.map(tasks.same, [1, lambda: None])
    assert pool.map(tasks.same, [2]) == [2]


def test_a_process_that_dies_is_replaced_and_its_task_repeated_once(tasks, workers, tmp_path):
    pool = workers(2, tasks.load)
    found = pool.map(tasks.pick, [0, ("die once", tmp_path / "flag"), 1, "die", 2, 3])
    assert found == [0, "die once", 1, Lost(-signal.SIGKILL), 2, 3]
    assert found[3].reason == "ended its process with exit code -9"


def test_one_that_died_while_idle_is_replaced(tasks, workers):
    pool = workers(1, tasks.load)
    ((number,),) = pool.map(tasks.held, [0])
    (process,) = (child for child in multiprocessing.active_children() if child.pid == number)
    process.kill()
    process.join(30)
    ((other,),) = pool.map(tasks.held, [0])
    assert other != number


def test_a_task_may_take_so_long(tasks, workers):
    pool = workers(1, tasks.load, timeout=0.3)
    found = pool.map(tasks.pick, ["hang", "good"])
    assert found == [TimedOut(0.3), "good"]
    assert found[0].reason == "took longer than 0.3 s"
    # The start is not counted, and each task for itself: 20 x 0.03 s are 0.6 s.
    assert len(pool.map(tasks.held, [30] * 20)) == 20


def test_a_task_may_have_a_home_and_a_time_of_its_own(tasks, workers):
    pool = workers(2, tasks.load)
    pool.start()
    assert len(multiprocessing.active_children()) >= 2
    homes = [1, 0, 0, 1, 0]
    numbers = [number for (number,) in pool.map(tasks.held, range(5), homes)]
    assert numbers == [numbers[home - 1] for home in homes]
    assert numbers[0] != numbers[1]
    # A process that was ended is replaced by another, with its tasks; the other one has nothing to do with it.
    given = ["hang", "good", 1, 2]
    assert pool.map(tasks.pick, given, [0, 0, 1, 1], [0.3, 20.0, 20.0, 20.0]) == [TimedOut(0.3), *given[1:]]
    assert [number for (number,) in pool.map(tasks.held, [0], [1])] == numbers[:1]
    assert [number for (number,) in pool.map(tasks.held, [0], [0])] != numbers[1:2]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_outcome_that_stops_is_the_same_and_the_rest_is_left(tasks, workers, tmp_path, count):
    """Even where its process dies first: while the next one loads, for 0.5 s, the second task has ended."""
    pool = workers(count, tasks.load_slowly)
    pool.map(tasks.held, [1000] * count)  # now all are there
    given = [("die once and raise", tmp_path / "flag"), ("raise late", 1), *[("raise", 2)] * 20]
    ended = dict(pool.stream(tasks.pick, given, stop=lambda outcome: isinstance(outcome, Raised)))
    assert ended[0].text.endswith(": KeyError: 'in the end'")
    assert len(ended) <= count


def test_outcomes_are_told_as_they_end(tasks, workers):
    pool = workers(2, tasks.load)
    pool.map(tasks.held, [100, 100])
    assert [number for number, _ in pool.stream(tasks.held, [500, 1, 1])] == [1, 2, 0]


def test_one_may_leave_before_the_end(tasks, workers):
    pool = workers(2, tasks.load)
    for _, outcome in pool.stream(tasks.pick, ["good", "hang"]):
        assert outcome == "good"
        break
    assert pool.map(tasks.pick, ["good", "better"]) == ["good", "better"]


def test_an_interrupted_call_leaves_no_outcome_for_the_next(tasks, workers, monkeypatch):
    pool, waited = workers(1, tasks.load), []
    pool.map(tasks.same, [0])
    wait = multiprocessing.connection.wait

    def interrupted(*given):
        waited.append(given)
        if len(waited) == 2:
            raise KeyboardInterrupt
        return wait(*given)

    with monkeypatch.context() as patch:
        patch.setattr("fedsim.parallel.workers.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.map(tasks.same, [1, 2])
    assert pool.map(tasks.same, [3]) == [3]


def test_several_threads_may_ask(tasks, workers):
    pool, found = workers(2, tasks.load), {}

    def work(number):
        found[number] = pool.map(tasks.same, [number] * 5)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [number] * 5 for number in range(4)}


def test_a_worker_may_have_workers(tasks, workers):
    assert workers(1, tasks.load).map(tasks.pick, [("inner", 1, 2)]) == [[1, 2]]


# Start and end


def test_what_cannot_be_sent_or_loaded_is_an_error(tasks, workers):
    with pytest.raises(FedsimError, match="a worker process cannot be sent what it is to load: AttributeError: Can't"):
        Workers(1, lambda: None)
    at = f"{tasks.__file__}, line {line('raise ValueError')}"
    for load, reason in ((tasks.refuse, f"raised {at}: ValueError: no way"), (tasks.leave, Lost(5).reason)):
        with pytest.raises(WorkerError) as caught:
            workers(2, load).map(tasks.same, [1, 2])
        assert caught.value.reason == reason
        remedy = '; a script has to start workers below `if __name__ == "__main__":`' if load is tasks.leave else ""
        assert str(caught.value) == f"a worker process {reason}{remedy}"
        assert ("in refuse" in "".join(getattr(caught.value, "__notes__", ""))) == (load is tasks.refuse)


def test_closed_they_start_again(tasks):
    gc.collect()  # processes of other tests' pools go now, not in the middle
    before = set(multiprocessing.active_children())

    def started():
        return len(set(multiprocessing.active_children()) - before)

    with Workers(2, tasks.load) as pool:
        for _ in range(2):
            assert pool.map(tasks.same, [1, 2]) == [1, 2]
            pool.close()
            assert started() == 0
        pool.map(tasks.same, [1])
    assert started() == 0
    pool.map(tasks.same, [1])
    assert started() == 1
    del pool
    gc.collect()
    assert started() == 0


def test_an_interrupt_at_the_keyboard_is_not_for_workers(tasks, workers):
    assert workers(1, tasks.load).map(tasks.pick, ["interrupt"]) == [True]


SCRIPT = """
import sys
import numpy as np
import tasks_of_test as tasks
from fedsim.parallel.workers import Workers

if __name__ == "__main__":
    pool = Workers(1, tasks.load)
    ((worker,),) = pool.map(tasks.held, [0])
    assert pool.map(tasks.same, [np.ones(10**5)])[0].sum() == 10**5
    print(worker, *pool.map(tasks.pick, ["start"]), flush=True)
    if "at work" in sys.argv:
        pool.map(tasks.pick, ["hang"])
    if "idle" in sys.argv:
        tasks.pick("idle", "hang")
"""


@pytest.mark.parametrize("killed", [None, "at work", "idle"])
def test_nothing_outlives_the_process_that_started_them(tasks, tmp_path, killed):
    """Nor what tasks have started, nor memory, nor a word of complaint; also when that process is killed."""
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join(sys.path)
    arguments = [sys.executable, tmp_path / "script.py", killed or "runs"]
    env = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        started = list(map(int, process.stdout.readline().split()))
        if killed:
            assert all(map(alive, started))
            process.kill()
        _, said = process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if killed else 0)
    assert said == ""
    assert len(started) == 2
    assert gone(*started)
    assert not segments(process.pid)


# Messages

NAN = np.array([0x7FF8000000000123], np.uint64).view(np.float64)
"""A NaN whose bits say something."""
VALUES = [
    np.arange(20000.0),
    np.asfortranarray(np.arange(20000.0).reshape(100, 200)),
    np.arange(20000.0).reshape(100, 200)[::2, ::3],
    np.zeros((0, 3)),
    NAN,
    np.array([("a", 1)], dtype=[("name", "U4"), ("number", "i4")]),
    np.array([None, "text"], dtype=object),
    np.float32(1.5),
    bytes(2**16),
    os.urandom(2**20),
    {"params": torch.ones(3), "bytes": bytes(10), "more": [np.ones(10**5), None, 2**70]},
]


def described(value):
    """All there is to say of a value, in terms that can be compared."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().to_dense().contiguous().reshape(-1).view(torch.uint8).tolist()
        return type(value), value.dtype, value.shape, value.requires_grad, value.layout, plain
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tolist() if value.dtype == object else value.tobytes()
    if isinstance(value, dict):
        return {name: described(inner) for name, inner in value.items()}
    return [described(inner) for inner in value] if isinstance(value, list) else value


TENSORS = [
    *[
        torch.arange(12).to(dtype).reshape(3, 4)
        for dtype in (
            torch.bool,
            torch.uint8,
            torch.int8,
            torch.int64,
            torch.float16,
            torch.bfloat16,
            torch.float64,
            torch.complex64,
        )
    ],
    torch.rand(300, 200).t(),
    torch.tensor(2.0),
    torch.zeros(0, 4),
    torch.from_numpy(NAN),
    torch.ones(2, 3).expand(5, 2, 3),
    torch.ones(3, requires_grad=True),
    torch.nn.Parameter(torch.ones(3)),
    torch.eye(3).to_sparse(),
]


@pytest.fixture(scope="module")
def echo():
    """One pool for all values, whose memory grows with them."""
    with Workers(1, os.getpid) as pool:
        yield lambda value: pool.map(returned, [value])[0]
        assert not segments()


def returned(held, task):
    return task


@pytest.mark.parametrize("value", [*VALUES, *TENSORS], ids=lambda value: type(value).__name__)
def test_values_arrive_as_they_are_there_and_back(echo, value):
    assert described(echo(value)) == described(value)


def test_what_arrives_can_be_written_to_and_begins_where_tensors_do(echo):
    array, tensor = echo([np.ones(10**5), torch.ones(10**5)])
    array += 1
    tensor += 1
    assert array.ctypes.data % 64 == tensor.data_ptr() % 64 == 0
    fixed = np.ones(10**5)
    fixed.setflags(write=False)
    assert not echo(fixed).flags.writeable
    held = torch.ones(4, 2).conj()
    assert echo([held, held])[0].tolist() == held.tolist()


def test_what_has_arrived_is_not_overwritten_by_what_comes_later(tasks, workers):
    pool = workers(1, tasks.load)
    found = [pool.map(tasks.same, [np.full(10**5, number)])[0] for number in range(5)]
    assert [set(array.tolist()) for array in found] == [{0}, {1}, {2}, {3}, {4}]
    for number in range(5):
        (sums,) = pool.map(tasks.keep, [np.full(10**5, float(number))])
    assert sums == [0.0, 1e5, 2e5, 3e5, 4e5]


def test_memory_grows_by_doubling_and_loses_its_name(monkeypatch):
    made = []

    class Watched(shared_memory.SharedMemory):
        def __init__(self, name, create=False, size=0):
            super().__init__(name, create, size)
            if create:
                made.append(size)

    monkeypatch.setattr(shared_memory, "SharedMemory", Watched)
    near, far = (
        Channel(end, f"fedsim-{os.getpid()}-{own}", f"fedsim-{os.getpid()}-{other}")
        for end, own, other in zip(multiprocessing.Pipe(), "ab", "ba", strict=True)
    )
    for size in (SMALL - 1000, SMALL, 2 * SMALL, SMALL, 2 * SMALL + 5000, 9 * SMALL):
        near.send(bytes(size))
        assert far.receive() == bytes(size)
        assert not segments()
    # 2^15 and a few more do not go through the pipe; 2^16 and a few fit into twice that or more; and so on.
    assert len(made) == 4
    assert made[0] < SMALL + 100
    assert made[1] == 2 * made[0]
    assert made[2] == 2 * 2 * made[0]
    assert 9 * SMALL < made[3] < 9 * SMALL + 100
    far.send(bytes(SMALL))  # which nobody receives, as when its process is killed
    assert len(segments()) == 1
    near.close()
    assert not segments()
    far.close()


def test_without_room_large_messages_take_the_pipe(monkeypatch):
    def full(memory):
        raise OSError(errno.ENOSPC, "no space left")

    near, far = (Channel(end, f"{end.fileno()}", "none") for end in multiprocessing.Pipe())
    monkeypatch.setattr(shared_memory, "_reserve", full)
    value = np.arange(10.0**6)
    sender = threading.Thread(target=near.send, args=([value, torch.ones(3)],))
    sender.start()
    array, tensor = far.receive()
    sender.join()
    assert np.array_equal(array, value)
    assert tensor.tolist() == [1.0, 1.0, 1.0]
    for end in (near, far):
        end.close()


def test_a_message_that_makes_no_sense_is_told_from_an_end(tasks):
    near, far = (Channel(end, "none", "none") for end in multiprocessing.Pipe())
    near.send(tasks.Unreadable())
    with pytest.raises(UnreadableError) as caught:
        far.receive()
    assert isinstance(caught.value.__cause__, ValueError)
    near.close()
    with pytest.raises(EOFError):
        far.receive()
    far.close()


def test_hundreds_of_rounds_leave_nothing_behind(tasks, workers):
    """1 MB there and back, 300 times: neither side grows by 8 MiB, where it would have by 200."""
    pool, array = workers(1, tasks.load), torch.arange(2.0**18)

    def used():
        here = (tasks.rss(), len(os.listdir("/proc/self/fd")))
        return np.array([here, *pool.map(tasks.resources, [None])])

    for number in range(300):
        if number == 100:
            before = used()
        assert torch.equal(pool.map(tasks.same, [array])[0], array)
    grown = used() - before
    assert (grown[:, 0] < 8).all()
    assert (grown[:, 1] == 0).all()
    assert not segments()
