"""How long orders take: rules, draws and traces of the time to compute, links, and jitter."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import fedsim
from fedsim.core.clock import SECOND, ticks
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.devices import Census, Devices
from fedsim.devices.fleet import LAST


def census(population):
    return Census(torch.full((population,), 5), lambda: None)


def fleet(population=20, seed=0, data_dir=None, **options):
    return Devices(**options).start(census(population), Streams(seed), data_dir)


def ask(made, clients=None, *, work=1.0, down=0, up=0, turn=0):
    """Durations in ticks of these clients, by default of all."""
    ids = np.arange(made.population) if clients is None else np.array(clients)
    return made.durations(ids, np.full(len(ids), work), down, up, turn)


def test_the_published_setting_f_80_of_20_clients():
    # tau_i = 1 - 0.8 i/19: the first takes 1 s, the last 0.2 s to the tick, though 1 - 0.8 < 0.2 in floating point.
    taken = ask(fleet(compute={"kind": "fixed", "spread": 80.0}))
    assert taken.dtype == np.int64
    assert taken[0] == ticks(1.0)
    assert taken[19] == ticks(0.2)
    # Equal steps of 0.8/19 s = 42105263.16 ticks.
    assert set(np.diff(taken)) == {-42105263, -42105264}


def test_bursts_are_a_chain_for_each_client_over_the_rounds():
    bursts = {"kind": "bursty", "seconds": 2.0, "slowdown": 3.0, "enter": 0.1, "leave": 0.5, "rounds": 200}
    made = fleet(50, compute=bursts)
    taken = np.array([ask(made, turn=turn) for turn in range(201)])
    assert set(np.unique(taken)) == {2 * SECOND, 6 * SECOND}
    assert (taken[200] == taken[0]).all()
    slow = taken[:200] > 2 * SECOND
    # 0.1 / (0.1 + 0.5) of 10,000; half of those that are slow are so in the next round as well.
    assert slow.mean() == pytest.approx(1 / 6, abs=0.015)
    assert (slow[1:] & slow[:-1]).sum() / slow[:-1].sum() == pytest.approx(0.5, abs=0.04)
    few = np.array([ask(fleet(3, compute=bursts), turn=turn) for turn in range(20)])
    assert (few == taken[:20, :3]).all()


def test_a_single_client_takes_the_slowest_time():
    assert ask(fleet(1, compute={"kind": "fixed", "spread": 80.0, "seconds": 3.0})) == [ticks(3.0)]


def test_by_default_everybody_takes_a_second():
    assert ask(fleet(3)).tolist() == [SECOND] * 3


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        # tau = 1, 0.75, 0.5, 0.25 s by rank; the largest is the fastest.
        ("client", [1.0, 0.75, 0.5, 0.25]),
        # Sizes 7, 2, 9, 2: ascending are clients 1, 3 (a tie, by id), 0, 2.
        ("size", [0.5, 1.0, 0.25, 0.75]),
        # Mean labels 4, none, 1, 4: ascending are clients 2, 0, 3, and the one without any is last.
        ("label", [0.75, 0.25, 1.0, 0.5]),
    ],
)
def test_ranks(by, expected):
    asked = []

    def labels():
        asked.append(by)
        return np.array([4.0, np.nan, 1.0, 4.0])

    known = Census(torch.tensor([7, 2, 9, 2]), labels)
    made = Devices(compute={"kind": "fixed", "spread": 75.0, "by": by}).start(known, Streams(0))
    assert ask(made).tolist() == [ticks(seconds) for seconds in expected]
    assert asked == (["label"] if by == "label" else [])  # which is a pass over all examples


def test_no_rank_by_label_without_labels():
    with pytest.raises(InputError, match=r"^devices\.compute\.by = label: examples have no labels"):
        fleet(compute={"kind": "fixed", "by": "label"})


def test_uniform_seconds():
    taken = ask(fleet(2000, compute={"kind": "uniform", "low": 2.0, "high": 6.0})) / SECOND
    assert taken.min() >= 2.0
    assert taken.max() < 6.0
    # Mean 4, standard error 4/sqrt(12)/sqrt(2000) = 0.026; 5 of them. Variance 16/12.
    assert taken.mean() == pytest.approx(4.0, abs=0.13)
    assert taken.var() == pytest.approx(16 / 12, rel=0.1)


def test_log_normal_seconds():
    logs = np.log(ask(fleet(2000, compute={"kind": "lognormal", "median": 3.0, "sigma": 0.5})) / SECOND)
    # Standard errors: 0.5/sqrt(2000) = 0.011 of the mean, 0.5/sqrt(4000) = 0.008 of the deviation; 5 of them.
    assert logs.mean() == pytest.approx(math.log(3.0), abs=0.056)
    assert logs.std() == pytest.approx(0.5, abs=0.04)


def test_zipf_seconds():
    made = {"kind": "zipf", "seconds": 0.5, "exponent": 2.0}
    # Ranks 1, 2, 3, 4: 0.5 r^2 s.
    taken = [tuple(ask(fleet(4, seed, compute=made))) for seed in range(20)]
    for each in taken:
        assert sorted(each) == [ticks(0.5), ticks(2.0), ticks(4.5), ticks(8.0)]
    assert len(set(taken)) > 10  # of 24 orders


@pytest.mark.parametrize(
    "compute",
    [
        {"kind": "uniform", "low": 1.0, "high": 2.0},
        {"kind": "lognormal", "median": 1.0, "sigma": 1.0},
        {"kind": "zipf", "seconds": 1.0, "exponent": 1.0},
    ],
)
def test_drawn_seconds_are_the_seeds_and_stay(compute):
    made = fleet(compute=compute)
    assert ask(made, turn=0).tolist() == ask(made, turn=5).tolist() == ask(fleet(compute=compute)).tolist()
    assert ask(made).tolist() != ask(fleet(seed=1, compute=compute)).tolist()


def test_seconds_a_step():
    made = fleet(3, per="step", compute={"kind": "fixed", "seconds": 0.5, "spread": 50.0})
    # 0.5, 0.375 and 0.25 s a step; 4, 2 and 0.5 steps. No step at all is one tick.
    taken = made.durations(np.arange(3), np.array([4.0, 2.0, 0.5]), 0, 0, 0)
    assert taken.tolist() == [ticks(2.0), ticks(0.75), ticks(0.125)]
    assert ask(made, [2, 0], work=0.0).tolist() == [1, 1]


def test_an_order_has_an_overhead_of_so_many_steps():
    made = fleet(2, per="step", overhead=10.0, compute={"kind": "fixed", "seconds": 0.1})
    assert made.durations(np.arange(2), np.array([1.0, 4.0]), 0, 0, 0).tolist() == [ticks(1.1), ticks(1.4)]


def test_work_does_not_count_for_an_order():
    assert ask(fleet(1), work=7.0) == [SECOND]


def test_links():
    # 1 s + 300/100 s + 500/1000 s.
    made = fleet(2, bandwidth={"down": 100.0, "up": 1000.0})
    assert ask(made, down=300, up=500).tolist() == [ticks(4.5)] * 2


def test_links_spread_alike_both_ways():
    made = fleet(2000, bandwidth={"down": 100.0, "up": 1000.0, "sigma": 0.5})
    down, up = (ask(made, down=a, up=b) / SECOND - 1.0 for a, b in ((300, 0), (0, 3000)))
    # Both 3 s at the median, times the same factor, to the rounding of a tick.
    np.testing.assert_allclose(down, up, atol=1e-8)
    logs = np.log(down)
    # Standard errors as for the log-normal seconds.
    assert logs.mean() == pytest.approx(math.log(3.0), abs=0.056)
    assert logs.std() == pytest.approx(0.5, abs=0.04)


def test_jitter_has_mean_one_and_falls_on_the_computation_only():
    made = fleet(4000, jitter=0.5, bandwidth={"down": 100.0, "up": 100.0})
    factor = ask(made, down=500, up=500) / SECOND - 10.0
    assert factor.min() > 0
    # Variance exp(0.25) - 1 = 0.284: standard error 0.0084; 5 of them.
    assert factor.mean() == pytest.approx(1.0, abs=0.042)
    assert np.log(factor).std() == pytest.approx(0.5, abs=0.03)


def test_jitter_is_drawn_for_each_order_by_name():
    made = fleet(jitter=0.5)
    turns = [0, 1, 2**32, 2**32 + 1]
    orders = {turn: tuple(ask(made, turn=turn)) for turn in turns}
    assert len(set(orders.values())) == 4
    assert tuple(ask(made, turn=0)) == orders[0]


@pytest.mark.parametrize(
    "options",
    [
        {"compute": {"kind": "fixed", "spread": 80.0}},
        {"compute": {"kind": "lognormal", "median": 1.0, "sigma": 1.0}, "jitter": 0.5, "per": "step"},
        {"bandwidth": {"up": 5.0, "down": 7.0, "sigma": 1.0}, "failure": {"mean_seconds": 1.0}},
    ],
)
def test_company_changes_nothing(options):
    made = fleet(**options)
    together = ask(made, turn=3, work=2.0, down=9, up=8)
    alone = [ask(made, [client], turn=3, work=2.0, down=9, up=8)[0] for client in range(20)]
    assert together.tolist() == alone
    some = np.array([11, 4])
    some.setflags(write=False)
    assert made.durations(some, np.array([2.0, 2.0]), 9, 8, 3).tolist() == [together[11], together[4]]
    lost = made.failures(np.arange(20), together, 3)
    if lost is not None:
        assert made.failures(some, together[some], 3).tolist() == [lost[11], lost[4]]


def test_what_is_lent_can_be_changed():
    made = fleet(3)
    ask(made)[:] = 0
    assert ask(made).tolist() == [SECOND] * 3


def test_no_duration_overflows():
    # 10^9 s * 10^9 steps = 10^27 ticks.
    assert ask(fleet(1, per="step", compute={"kind": "fixed", "seconds": 1e9}), work=1e9) == [LAST]


def test_declared_is_what_orders_will_take():
    made = fleet(
        5, per="step", compute={"kind": "fixed", "spread": 80.0}, bandwidth={"up": 9.0, "down": 5.0, "sigma": 1.0}
    )
    work = np.arange(1.0, 6.0)
    assert made.declared(work, 30, 40).tolist() == made.durations(np.arange(5), work, 30, 40, 8).tolist()
    assert fleet(5, jitter=0.1).declared(work, 0, 0) is None


@pytest.fixture(params=["csv", "parquet"])
def trace(request, tmp_path):
    """Write a table of columns; returns its path."""

    def write(**columns):
        path = tmp_path / f"trace.{request.param}"
        if request.param == "parquet":
            pq.write_table(pa.table(columns), path)
        else:
            rows = zip(*columns.values(), strict=True)
            path.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]))
        return path

    return write


def test_rows_of_a_trace_are_used_in_turn(trace):
    path = trace(client=[1, 0, 1, 2, 1], note=["x"] * 5, seconds=[2.5, 1.0, 0.5, 4.0, 3.0])
    made = fleet(3, compute={"kind": "trace", "file": str(path)})
    # Client 1 has 2.5, 0.5 and 3 s, in the order of the file; the others have one row.
    for turn, second in enumerate([2.5, 0.5, 3.0, 2.5]):
        assert ask(made, turn=turn).tolist() == [ticks(1.0), ticks(second), ticks(4.0)]
    assert made.declared(np.ones(3), 0, 0) is None


def test_a_trace_with_a_row_a_client_is_declared(trace):
    made = fleet(2, compute={"kind": "trace", "file": str(trace(client=[1, 0], seconds=[2, 3]))})
    assert made.declared(np.ones(2), 0, 0).tolist() == [ticks(3.0), ticks(2.0)]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan, 2e9])
def test_a_duration_that_cannot_be_used(trace, seconds):
    path = trace(client=[0, 1], seconds=[1.0, seconds])
    with pytest.raises(
        InputError, match=r"^devices\.compute\.file = .*: row 2: seconds must be .*; correct it or remove"
    ):
        fleet(2, compute={"kind": "trace", "file": str(path)})


@pytest.mark.parametrize("client", [2, -1, 0.5])
def test_a_client_that_there_is_not(trace, client):
    path = trace(client=[0.0, client, 1.0], seconds=[1.0, 1.0, 1.0])
    with pytest.raises(InputError, match=r"row 2: there is no such client; write whole numbers from 0 to 1"):
        fleet(2, compute={"kind": "trace", "file": str(path)})


def test_a_client_without_a_row(trace):
    path = trace(client=[0, 2], seconds=[1.0, 1.0])
    with pytest.raises(InputError, match=r"client 1 has no row; give every client one"):
        fleet(3, compute={"kind": "trace", "file": str(path)})


def test_a_column_that_there_is_not(trace):
    path = trace(client=[0], second=[1.0])
    with pytest.raises(InputError, match="one column must be called seconds; the columns are: client, second"):
        fleet(1, compute={"kind": "trace", "file": str(path)})


def test_a_missing_number(tmp_path):
    path = tmp_path / "trace.parquet"
    pq.write_table(pa.table({"client": [0, 1], "seconds": [1.0, None]}), path)
    with pytest.raises(InputError, match="row 2: seconds is None, which is no number; correct it or remove the row"):
        fleet(2, compute={"kind": "trace", "file": str(path)})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("client,seconds\n0,fast\n", "row 1: seconds is 'fast', which is no number"),
        ("client,seconds\n0,\n", "row 1: seconds is '', which is no number"),
        ("client,seconds\n0,1\n1\n", "row 2: it has 1 fields, the header 2"),
        ("client,seconds\n", "client 0 has no row"),
        ("client,seconds,seconds\n0,1,2\n", "one column must be called seconds"),
        ("", "one column must be called client; the columns are: none"),
    ],
)
def test_a_csv_file_that_cannot_be_used(tmp_path, text, fault):
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(InputError, match=fault):
        fleet(2, data_dir=tmp_path, compute={"kind": "trace", "file": "trace.csv"})


@pytest.mark.parametrize(("name", "bytes_"), [("a.csv", b"\xff\xfe\x00"), ("a.parquet", b"client,seconds")])
def test_a_file_that_is_no_table(tmp_path, name, bytes_):
    (tmp_path / name).write_bytes(bytes_)
    with pytest.raises(InputError, match=r"^devices\.compute\.file = .*cannot be read as a \.(csv|parquet) table"):
        fleet(2, data_dir=tmp_path, compute={"kind": "trace", "file": name})


def test_files_are_looked_for_in_the_data_folder_first(tmp_path, monkeypatch):
    data, here = tmp_path / "data", tmp_path / "here"
    for folder, seconds in ((data, 1), (here, 2)):
        folder.mkdir()
        (folder / "trace.csv").write_text(f"client,seconds\n0,{seconds}\n")
    monkeypatch.chdir(here)
    compute = {"kind": "trace", "file": "trace.csv"}
    assert ask(fleet(1, data_dir=data, compute=compute)) == [ticks(1.0)]
    (data / "trace.csv").unlink()
    assert ask(fleet(1, data_dir=data, compute=compute)) == [ticks(2.0)]
    (here / "trace.csv").unlink()
    with pytest.raises(
        InputError, match=r"^devices\.compute\.file = trace\.csv: there is no .* looked for .*data.*here"
    ):
        fleet(1, data_dir=data, compute=compute)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "batch"}, "^per = batch"),
        ({"jitter": -0.1}, "^jitter = -0.1"),
        ({"overhead": 2.0}, '^overhead = 2.0: an order takes its seconds as it is; set per = "step"'),
        ({"overhead": -1.0, "per": "step"}, "^overhead = -1"),
        (
            {"compute": "quick"},
            r"^compute\.kind = quick: not one of the installed speeds: bursty, fixed, lognormal, trace, uniform, zipf",
        ),
        ({"compute": {"kind": "fixed", "spread": 100.0}}, r"^compute\.spread = 100"),
        ({"compute": {"kind": "fixed", "seconds": 0.0}}, r"^compute\.seconds = 0"),
        ({"compute": {"kind": "fixed", "seconds": 1e10}}, r"^compute\.seconds = 1"),
        ({"compute": {"kind": "fixed", "by": "name"}}, r"^compute\.by = name"),
        ({"compute": {"kind": "uniform", "low": 2.0, "high": 1.0}}, r"^compute\.high = 1.0: must be at least low"),
        ({"compute": {"kind": "lognormal", "median": 1.0, "sigma": -1.0}}, r"^compute\.sigma = -1"),
        ({"compute": {"kind": "zipf", "seconds": 1.0, "exponent": -1.0}}, r"^compute\.exponent = -1"),
        (
            {"compute": {"kind": "trace", "file": "a.txt"}},
            r"^compute\.file = a\.txt: .*name a \.csv or a \.parquet",
        ),
        ({"bandwidth": {"up": 0.0, "down": 1.0}}, r"^bandwidth\.up = 0"),
        ({"bandwidth": {"up": 1.0}}, r"^bandwidth\.down = .*no default"),
        ({"bandwidth": 5.0}, "^bandwidth = 5"),
        ({"failure": {"mean_seconds": 0.0}}, r"^failure\.mean_seconds = 0"),
        ({"failure": {"mean_seconds": 1.0, "repair_seconds": -1.0}}, r"^failure\.repair_seconds = -1"),
        ({"failure": {"mean_seconds": 1.0, "speed": 1.0}}, r"^failure\.speed = 1.0: no such option here"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(InputError, match=message):
        Devices(**options)


TIDES = '''
import numpy as np

from fedsim.devices.compute import Pace
from fedsim.core.options import Seconds, options


@options
class Tides:
    """Odd clients take twice as long."""

    seconds: Seconds = 1.0

    def start(self, census, streams, data_dir):
        return Pace.constant(self.seconds * (1.0 + np.arange(len(census.sizes)) % 2))


class Night:
    def at(self, now):
        return np.array([now >= 5, True])

    def wakes(self, now):
        return 5 if now < 5 else None


@options
class Owls:
    """Client 0 cannot begin before tick 5."""

    def start(self, population, streams, data_dir):
        return Night()
'''


def test_anybodys_devices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tides.py").write_text(TIDES)
    tables = {"compute": {"kind": "./tides.py:Tides", "seconds": 3.0}, "availability": "./tides.py:Owls"}
    experiment = fedsim.experiment(devices=tables)
    made = experiment.devices.start(census(2), Streams(0))
    assert ask(made).tolist() == [ticks(3.0), ticks(6.0)]
    assert (made.available(4).tolist(), made.wakes(4), made.wakes(5)) == ([False, True], 5, None)
    assert not experiment.devices.steady
    resolved = experiment.resolved()["devices"]
    assert resolved == {
        "compute": {"kind": f"{tmp_path}/tides.py:Tides", "seconds": 3.0},
        "per": "order",
        "overhead": 0.0,
        "jitter": 0.0,
        "availability": {"kind": f"{tmp_path}/tides.py:Owls"},
    }
    assert fedsim.experiment(devices=resolved).resolved()["devices"] == resolved
    with pytest.raises(InputError, match=r"^devices\.compute\.seconds = -1.0: "):
        fedsim.experiment(devices={"compute": {"kind": "./tides.py:Tides", "seconds": -1.0}})
    with pytest.raises(InputError, match=r"^devices\.compute\.kind = mlp: not one of the installed speeds"):
        fedsim.experiment(devices={"compute": "mlp"})
