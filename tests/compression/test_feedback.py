"""Feedback, step by step on two quadratics, and in runs."""

from fractions import Fraction

import pytest
import torch

from fedsim.compression.econtrol import EControl
from fedsim.compression.ef14 import EF14
from fedsim.compression.ef21 import EF21
from fedsim.compression.ef21_plus import EF21Plus
from fedsim.compression.induced import Induced
from fedsim.compression.low_rank import LowRank
from fedsim.compression.natural import Natural
from fedsim.compression.qsgd import QSGD
from fedsim.compression.random_k import RandomK
from fedsim.compression.sign import Sign
from fedsim.compression.top_k import TopK
from fedsim.core.errors import InputError
from fedsim.core.streams import SERVER, Streams
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Chain, Noise, Sender
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment, small_problem

A = torch.tensor([[[1, 0, 0], [0, 2, 0], [0, 0, 4]], [[2, 1, 0], [1, 3, 0], [0, 0, 1]]], dtype=torch.float64)
B = torch.tensor([[4, 1, -2], [-1, 3, 2]], dtype=torch.float64)
STEP = 1 / 8


class Crossings:
    """A list of transforms and what is remembered for it."""

    def __init__(self, *listed, length=3, option="transforms"):
        plain = Size(length, 64)
        self.chain = Chain(tuple(listed), option).fitted((), plain)
        self.state = {}
        self.shapes = self.chain.state(plain)

    def send(self, rows, clients=None, turn=0):
        clients = torch.arange(len(rows)) if clients is None else clients
        zeros = {name: rows.new_zeros((8, *shape)) for name, shape in self.shapes.items()}
        kept = {name: self.state.get(name, zeros[name]) for name in self.shapes}
        places = clients % 8
        own = {name: held[places] for name, held in kept.items()}
        crossed = self.chain.apply({self.chain.usual: rows}, Sender(clients, Streams(0), turn, own))
        for name, held in crossed.state.items():
            kept[name] = kept[name].index_copy(0, places, held)
        self.state = kept
        return crossed.payload[self.chain.usual], crossed.nbytes


def gradients(x):
    return A @ x - B if x.dim() == 1 else (A @ x.unsqueeze(2)).squeeze(2) - B


def descend(crossings, rounds=3, cohorts=None, sums=False, down=None):
    """Models of gradient descent in which the gradients, times the step, cross."""
    x, h, found = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), []
    for turn in range(rounds):
        w = x if down is None else down.send(x.unsqueeze(0), torch.tensor([SERVER]), turn)[0][0]
        clients = torch.tensor([0, 1] if cohorts is None else cohorts[turn])
        sent = crossings.send(-STEP * gradients(w)[clients], clients, turn)[0]
        h = h + sent.sum(dim=0) / 2 if sums else sent.mean(dim=0)
        x = x + h
        found.append(x.tolist())
    return found


def numbers(text):
    return [[float(Fraction(one)) for one in point.split()] for point in text.split(",")]


TOP = TopK(k=1)
FIRST = "3/4 1 5/8, "
DENSE = "15/16 7/8 11/16, 7/8 199/256 29/64, "
ORACLE = {
    "none": ((), {}, FIRST + "17/32 1 11/32, 285/512 1 11/32"),
    "ef14": ((EF14(),), {}, FIRST + "59/64 1 5/8, 349/512 1 1/16"),
    "ef21": ((EF21(),), {}, FIRST + "45/64 1 43/128, 21/32 979/1024 109/512"),
    "ef21 summed": (
        (EF21(arrives="increment"),), {"sums": True}, FIRST + "45/64 1 43/128, 21/32 979/1024 109/512",
    ),
    "ef21 plus": (None, {}, FIRST + "45/64 1 43/128, 21/32 979/1024 109/512"),
    "ef21 dense": ((EF21(init="dense"),), {}, DENSE + "13/16 87/128 319/1024"),
    "ef21 dense, summed": (
        (EF21(init="dense", arrives="increment"),), {"sums": True}, DENSE + "13/16 87/128 319/1024",
    ),
    "momentum": ((EF21(momentum=0.5),), {}, FIRST + "89/128 1 83/256, 41/64 3895/4096 269/2048"),
    "partial participation": (
        (EF21(arrives="increment"),), {"sums": True, "cohorts": ([0], [1], [0])}, "1 1 5/8, 3/4 1 1/4, 45/64 1 -1/8",
    ),
    "econtrol": ((EControl(eta=0.25),), {}, FIRST + "3/4 1 45/128, 3/4 237/256 135/512"),
    "econtrol summed": (
        (EControl(eta=0.25, arrives="increment"),), {"sums": True}, FIRST + "3/4 1 45/128, 3/4 237/256 135/512",
    ),
    "econtrol dense": ((EControl(eta=0.25, init="dense"),), {}, DENSE + "13/16 87/128 81/256"),
    "econtrol without eta": ((EControl(eta=0.0),), {}, FIRST + "45/64 1 43/128, 21/32 979/1024 109/512"),
}  # fmt: skip


@pytest.mark.parametrize("name", ORACLE)
def test_steps_to_the_last_bit(name):
    """All numbers are sums of powers of two. Without feedback each client's largest entry crosses alone."""
    listed, how, expected = ORACLE[name]
    chain = (EF21Plus(compressor=TOP),) if listed is None else (*listed, TOP)
    assert descend(Crossings(*chain), **how) == numbers(expected)


def test_steps_where_orders_are_compressed():
    """The server sends how the model has changed since what the clients have: EF21-P."""
    down = Crossings(EF21(init="dense"), TOP, option="order_transforms")
    found = descend(Crossings(), down=down)
    assert found == numbers("15/16 7/8 11/16, 7/8 3/4 121/256, 53/64 45/64 33/128")
    # The model once, and then 8 bytes of a number and 2 bits of its place.
    assert Crossings(EF21(init="dense"), TOP, option="order_transforms").send(torch.ones(1, 3).double())[
        1
    ].tolist() == [24 + 9]
    assert down.send(torch.ones(1, 3).double(), torch.tensor([SERVER]), 3)[1].tolist() == [9]


def test_what_comes_nearer_takes_the_place_of_the_estimate():
    """h = (0, 2, 0); of (9, 0, 0) the largest number is all, and of the change (9, -2, 0) it leaves out 2."""
    for init, first in (("zero", [0.0, 2.0, 0.0]), ("dense", [1.0, 2.0, 0.0])):
        crossings = Crossings(EF21Plus(compressor=TOP, init=init))
        arrived, nbytes = crossings.send(torch.tensor([[1.0, 2.0, 0.0]]).double())
        # A number of 64 bits, a place of 2, and which of the two it is; the dense one crosses as it is, beside.
        assert (arrived.tolist(), nbytes.tolist()) == ([first], [9 + 24 * (init == "dense")])
        arrived, nbytes = crossings.send(torch.tensor([[9.0, 0.0, 0.0]]).double())
        assert (arrived.tolist(), nbytes.tolist()) == ([[9.0, 0.0, 0.0]], [9])
        assert crossings.state["transforms/0/delta/estimate"][0].tolist() == [9.0, 0.0, 0.0]
        # Of (9, 1, 0) the largest number leaves out 1, and the change (0, 1, 0) nothing.
        assert crossings.send(torch.tensor([[9.0, 1.0, 0.0]]).double())[0].tolist() == [[9.0, 1.0, 0.0]]
        # Eight signs, a scale of 64 bits, and which of the two it is.
    assert Crossings(EF21Plus(compressor=Sign()), length=8).send(torch.ones(1, 8).double())[1].tolist() == [10]
    # What follows is in the estimate, too: half of it may be lost.
    coarse = Crossings(EF21Plus(compressor=TopK(k=2)), Sign())
    arrived = coarse.send(torch.tensor([[4.0, 2.0, 0.0]]).double())[0]
    assert arrived.tolist() == [[3.0, 3.0, 0.0]] == coarse.state["transforms/0/delta/estimate"][:1].tolist()


def test_weights_by_smoothness_change_nothing_for_the_largest_number():
    """L_1 = 4 and L_2 = (5 + sqrt 5) / 2: top-k commutes with factors, so that only rounding differs."""
    found = descend(Crossings(EF21(smoothness=(4.0, (5 + 5**0.5) / 2)), TOP), rounds=30)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(descend(Crossings(EF21(), TOP), rounds=30)))
    with pytest.raises(InputError, match=r"smoothness = 1: client 1 has none"):
        descend(Crossings(EF21(smoothness=(4.0,)), TOP), rounds=1)
    # Natural compression, of powers of two, does not commute with a factor of 3 / 4.
    one, other = (Crossings(EF21(**how), TOP, Natural()) for how in ({}, {"smoothness": (3.0, 5.0)}))
    assert descend(one, rounds=2) != descend(other, rounds=2)


def test_nothing_is_lost_without_a_compressor():
    plain = descend(Crossings())
    for feedback in (EF14(), EF21(), EF21(init="dense"), EControl()):
        assert descend(Crossings(feedback, TopK(k=3))) == plain


def test_what_is_missed_is_what_was_wanted_less_what_was_estimated():
    """e_i(T) = sum_t (g_i^t - h_i^(t + 1))."""
    crossings, total = Crossings(EControl(eta=0.25), TOP), 0.0
    for turn in range(6):
        rows = Streams(0).normal("rows", torch.arange(2), (3,), turn=turn, dtype=torch.float64)
        total = total + rows - crossings.send(rows, turn=turn)[0]
    torch.testing.assert_close(crossings.state["transforms/0/delta/missed"][:2], total)


def test_debts_fade_while_a_client_is_away():
    crossings = Crossings(EF14(decay=0.5), TOP)
    rows = torch.tensor([[4.0, 1.0, 0.0]], dtype=torch.float64)
    crossings.send(rows, turn=2**31 - 1)
    # One turn later all of it is owed, three turns after that a quarter.
    assert crossings.send(rows, turn=2**31)[0].tolist() == [[4.0, 0.0, 0.0]]
    assert crossings.state["transforms/0/delta/owed"][0].tolist() == [0.0, 2.0, 0.0]
    crossings.send(rows, turn=2**31 + 3)
    assert crossings.state["transforms/0/delta/owed"][0].tolist() == [0.0, 1.5, 0.0]


THREE = torch.tensor([[-3, 2, 2], [2, -3, 2], [2, 2, -3]], dtype=torch.float64)


def three(crossings, gamma, rounds, start=1.0):
    """Descent on f_i = (a_i x)^2 + |x|^2 / 4."""
    x = torch.full((3,), start, dtype=torch.float64)
    for turn in range(rounds):
        gradient = 2 * (THREE @ x).unsqueeze(1) * THREE + x / 2
        x = x - gamma * crossings.send(gradient, turn=turn)[0].mean(dim=0)
    return x


def test_naive_compression_diverges_where_feedback_converges():
    naive = Crossings(TOP)
    assert three(naive, 1e-3, 5).tolist() == pytest.approx([(1 + 11 / 6000) ** 5] * 3, rel=1e-12)
    smoothest = 103 / 6
    assert float(three(Crossings(TOP), 0.1 / smoothest, 200).norm()) == pytest.approx(14.4964475, rel=1e-6)
    delta = 1 / 3
    xi = (1 + (1 - delta) ** 0.5) / delta - 1
    gamma = 1 / (smoothest + 34.5 * xi)
    assert gamma == pytest.approx(0.0058591, rel=1e-4)
    assert float(three(Crossings(EF21(init="dense"), TOP), gamma, 500).norm()) == pytest.approx(5.4845e-2, rel=1e-3)
    assert float(three(Crossings(EControl(eta=0.1), TOP), gamma, 1500).norm()) < 1e-4


def test_under_noise_econtrol_comes_nearer_than_ef21():
    """Five clients' quadratics in ten dimensions, gradients with noise of deviation 1."""
    streams = Streams(0)
    curves = 0.5 + 2 * streams.uniform("curves", torch.arange(5), (10,), dtype=torch.float64)
    centres = streams.normal("centres", torch.arange(5), (10,), dtype=torch.float64)
    best = (curves * centres).sum(dim=0) / curves.sum(dim=0)

    def distance(*listed):
        crossings, x, squares = Crossings(*listed, length=10), best.clone(), []
        for turn in range(1500):
            noise = streams.normal("noise", torch.arange(5), (10,), turn=turn, dtype=torch.float64)
            x = x - 0.02 * crossings.send(curves * (x - centres) + noise, turn=turn)[0].mean(dim=0)
            squares.append(float((x - best).square().sum()))
        return sum(squares[500:]) / 1000

    plain = distance(EF21(), TOP)
    assert distance(EControl(eta=0.1), TOP) < 0.7 * plain
    assert distance(EF21(momentum=0.1), TOP) < 0.7 * plain


def test_induced_is_unbiased():
    """What top-k leaves out is drawn for: the mean of many is what was sent."""
    transform = Induced(first={"kind": "top_k", "k": 2}, second={"kind": "random_k", "k": 2})
    rows = torch.arange(1.0, 7.0, dtype=torch.float64).expand(2000, -1)
    chain = Chain((transform,)).fitted((), Size(6, 64))
    crossed = chain.apply({"delta": rows}, Sender(torch.arange(2000), Streams(0), 0))
    arrived = crossed.payload["delta"]
    assert (arrived[:, 4:] == rows[:, 4:]).all()
    # 1, 2, 3 or 4 arrives doubled or not at all: deviations of at most 4.
    assert ((arrived.mean(dim=0) - rows[0]).abs() < 5 * 4 / 2000**0.5).all()
    # Two numbers with places of 3 bits, and two numbers.
    assert crossed.nbytes.unique().tolist() == [-(-(4 * 64 + 6) // 8)]
    # Of |v|^2 top-2 loses 2/3 at most, and what random-2 adds is 2 times that.
    assert transform.error(Size(6, 64)) == pytest.approx(2 / 3 * 2)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([EF14()], r"transforms\.0\.kind = ef14: no compressor of delta comes after it"),
        ([TopK(k=2), EF21()], r"transforms\.1\.kind = ef21: no compressor"),
        ([EF14(), EF21(), TopK(k=2)], r"transforms\.1\.kind = ef21: one feedback is enough"),
        ([EF14(), RandomK(k=2)], r"transforms\.1\.kind = random_k: behind feedback, where it may be 5 times off"),
        ([EF21(), QSGD(levels=1)], r"transforms\.1\.kind = qsgd: behind feedback, where it may be 3 times off"),
        ([EF21(), TopK(k=2), Noise(std=1.0)], r"transforms\.2\.kind = noise: behind feedback"),
        ([Induced(first="ef14")], r"transforms\.0\.first = ef14: it remembers something"),
        (
            [EF21Plus(compressor={"kind": "low_rank", "rank": 1})],
            r"transforms\.0\.compressor\.rank = 1: it shortens no",
        ),
        ([EF21Plus(compressor="ef14")], r"transforms\.0\.compressor = ef14: it remembers something"),
        (
            [EF21Plus(compressor={"kind": "random_k", "k": 2})],
            r"compressor = random_k: it may be 5 times off; take one",
        ),
        ([EF14(), EF21Plus(compressor=TopK(k=2))], r"transforms\.1\.kind = ef21_plus: one feedback is enough"),
    ],
)
def test_what_does_not_go_with_feedback(listed, said):
    with pytest.raises(InputError, match=said):
        Chain(tuple(listed)).fitted(((3, 4),), Size(12, 32))


def test_what_goes_with_feedback():
    for follower in (RandomK(k=2, scaled=False), QSGD(levels=1, contract=True), QSGD(levels=16), Natural(), Sign()):
        assert Chain((EF14(), follower)).fitted(((3, 4),), Size(12, 32)).transforms == (EF14(), follower)
    ranked = Chain((EF14(), LowRank(rank=1))).fitted(((30, 40),), Size(1200, 32))
    assert ranked.state(Size(1200, 32)).keys() >= {"transforms/0/delta/owed"}


# --- In runs

TRACKED = [{"kind": "ef21", "arrives": "increment"}, {"kind": "top_k", "ratio": 0.2}]
OWING = [{"kind": "ef14"}, {"kind": "top_k", "ratio": 0.2}]


def run(rounds=6, **tables):
    simulation = build_simulation(small_experiment(rounds=rounds, **tables), small_problem())
    return simulation, list(simulation)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"strategy": "ef21"}, r"strategy\.kind = ef21: it adds up how delta changes"),
        ({"transforms": TRACKED}, r"transforms\.0\.arrives = increment: strategy fedavg does not add up"),
        (
            {
                "strategy": "scaffold",
                "client": {"kind": "scaffold", "epochs": 1},
                "transforms": [one | {"vectors": ["delta", "control-delta"]} for one in OWING],
            },
            r"transforms\.0\.vectors = delta, control-delta: of control-delta clients keep the estimate themselves",
        ),
        ({"transforms": OWING, "aggregation": "median"}, r"aggregation\.kind = median: where most clients leave"),
        ({"transforms": [{"kind": "top_k", "k": 84}]}, r"transforms\.0\.k = 84: only 83 numbers"),
    ],
)
def test_what_is_refused_before_a_run(tables, said):
    with pytest.raises(InputError, match=said):
        run(**tables)


def test_a_server_that_adds_up_has_the_mean_of_all_estimates():
    """Also of clients that were not in the last cohort, through faults of any kind, and after a restart."""
    faults = {"drop_after": {"rate": 0.1}, "non_finite": {"rate": 0.1}, "wrong_shape": {"rate": 0.1}}
    tables = {"strategy": "ef21", "transforms": TRACKED, "faults": faults}
    simulation, rows = run(12, **tables)
    assert sum(row["faults"] for row in rows) > 4
    _hold_mean(simulation)
    again = build_simulation(small_experiment(rounds=12, **tables), small_problem())
    for _ in range(5):
        again.step()
    third = build_simulation(small_experiment(rounds=12, **tables), small_problem())
    third.restore(again.snapshot())
    list(third)
    assert torch.equal(third.state.params, simulation.state.params)
    loop, _ = run(12, **tables, engine={"executor": "loop"})
    torch.testing.assert_close(loop.state.params, simulation.state.params, rtol=0, atol=1e-12)


def _hold_mean(simulation):
    held = simulation.snapshot()["engine"]["store"]["transforms/0/delta/estimate"]
    torch.testing.assert_close(simulation.state.memory["estimate"], held.sum(dim=0) / 6, rtol=0, atol=1e-12)
    assert simulation.state.memory["estimate"].any()


def owed_of(simulation):
    """What each client owes, in the order of clients."""
    store = simulation.snapshot()["engine"]["store"]
    return store["transforms/0/delta/owed"][store["clients"].argsort()]


def test_what_was_lost_is_owed_still():
    """Of a reply that is lost, or arrives as no number, memory is as it was; of one that lies it moves on."""
    whole, _ = run(1, transforms=OWING, selection={"kind": "uniform", "fraction": 1.0})
    for fault, moved in (("drop_after", False), ("non_finite", False), ("wrong_shape", False), ("scale", True)):
        faulty, _ = run(
            1,
            transforms=OWING,
            selection={"kind": "uniform", "fraction": 1.0},
            faults={fault: {"rate": 1.0, "clients": [3]}},
        )
        owed = [owed_of(one) for one in (whole, faulty)]
        wanted = owed[0].clone()
        if not moved:
            wanted[3] = 0.0
        assert torch.equal(owed[1], wanted), fault


def test_bytes_do_not_depend_on_when_replies_arrive():
    """In rounds, and as they come."""
    asynchronous = {
        "strategy": {"kind": "fedbuff", "size": 3},
        "devices": {"compute": {"kind": "fixed", "spread": 80.0}},
        "selection": {"kind": "uniform", "fraction": 1.0},
    }
    for tables in ({}, asynchronous):
        simulation, rows = run(8, **tables, transforms=OWING)
        each = 8 * 17 + 11  # 17 of 83 numbers, and a bit for each, which is shorter than 17 places of 7 bits
        assert sum(row["bytes_up"] for row in rows) == each * sum(row["clients"] for row in rows)
        assert owed_of(simulation).any()


SHARED = {"vectors": ["delta", "control-delta"]}
LOSSES = {"drop_after": {"rate": 0.15}, "non_finite": {"rate": 0.15}}


@pytest.mark.parametrize(
    "tables",
    [{}, {"engine": {"executor": "loop"}}, {"faults": LOSSES}],
    ids=["stacked", "one by one", "faulty"],
)
def test_scaffolds_clients_remember_what_has_crossed(tables):
    """So that the server's control variate is the mean of theirs, whatever is left out, or lost on its way."""
    simulation, rows = run(
        8,
        strategy="scaffold",
        client={"kind": "scaffold", "epochs": 1},
        transforms=[{"kind": "ef14", "vectors": ["delta"]}, {"kind": "top_k", "ratio": 0.1, **SHARED}],
        **tables,
    )
    store = simulation.snapshot()["engine"]["store"]
    own = store["control"].sum(dim=0) / 6
    torch.testing.assert_close(simulation.state.memory["control"], own, rtol=0, atol=1e-12)
    assert own.any()
    assert not tables or not tables.get("faults") or sum(row["faults"] for row in rows) > 4
    assert store["transforms/0/delta/owed"].any()


def test_debts_of_what_clients_commit_are_econtrols():
    """c_i is EF21's estimate of what c_i is to be; with debts it would be EControl's, of eta = 1."""
    wanted = Streams(0).normal("wanted", torch.arange(2), (3,), dtype=torch.float64)
    owing, tracking = Crossings(EF14(), TOP), Crossings(EControl(eta=1.0), TOP)
    control = torch.zeros_like(wanted)
    for turn in range(6):
        control = control + owing.send(wanted - control, turn=turn)[0]
        torch.testing.assert_close(control, tracking.send(wanted, turn=turn)[0])


def test_varying_weights_are_told(capsys):
    run(1, strategy={"kind": "fedavg"}, transforms=OWING)
    assert "transforms.0: clients count by their examples" in capsys.readouterr().err
    run(1, strategy={"kind": "fedavg", "weighting": "uniform"}, transforms=OWING)
    assert "clients count" not in capsys.readouterr().err
