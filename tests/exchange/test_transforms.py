from dataclasses import replace

import codes
import pytest
import torch
from codes import CHAIN, EightBits, Largest, Sparse

import fedsim.exchange.transforms as transforms
from fedsim.core.errors import BrokenPromiseError, InputError
from fedsim.core.options import options
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Chain, Clip, Noise, Sender, Transform
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

STREAMS = Streams(7)


def sender(count, *, clients=None, turn=0, streams=STREAMS, **state):
    return Sender(torch.arange(count) if clients is None else clients, streams, turn, state)


def send(listed, rows, **who):
    return Chain(listed).apply({"delta": rows}, sender(len(rows), **who))


def apply(transform, rows, **who):
    crossed = send((transform,), rows, **who)
    assert crossed.state == {}
    assert torch.equal(crossed.nbytes, torch.full((len(rows),), rows.shape[1] * rows.element_size()))
    return crossed.payload["delta"]


def test_clip_by_hand():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [-30.0, 40.0]])
    # Norms 5, 0.5, 0 and 50, to at most 2.
    expected = torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0], [-1.2, 1.6]])
    clipped = apply(Clip(max_norm=2.0), rows)
    torch.testing.assert_close(clipped, expected)
    assert torch.equal(clipped[1:3], rows[1:3])
    # The squares of 1e30 are beyond single precision.
    torch.testing.assert_close(apply(Clip(max_norm=2.0), 1e30 * rows[:1]), expected[:1])


def test_clip_takes_the_norm_of_all_vectors_that_it_goes_over():
    # (3, 4) and 12 have norm 13, which 6.5 halves; the third vector is not named.
    payload = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[12.0]]), "c": torch.tensor([[8.0]])}
    crossed = Chain((Clip(max_norm=6.5, vectors=("a", "b")),)).apply(payload, sender(1))
    assert {name: rows.tolist() for name, rows in crossed.payload.items()} == {
        "a": [[1.5, 2.0]],
        "b": [[6.0]],
        "c": [[8.0]],
    }
    assert crossed.nbytes.tolist() == [16]


def test_noise_has_its_deviation_and_its_own_streams():
    rows = torch.ones(20, 5000)
    noise = apply(Noise(std=0.5), rows) - rows
    # 100,000 normals: the mean's deviation is 0.5 / 316 = 0.0016, the deviation's 0.5 / 447 = 0.0011.
    assert abs(float(noise.mean())) < 5 * 0.0016
    assert abs(float(noise.std()) - 0.5) < 5 * 0.0011
    # Correlations between two clients, two turns, two names, two seeds and two vectors: 0 within 5 / sqrt(5000).
    both = Chain((Noise(std=0.5, vectors=("delta", "more")),)).apply({"delta": rows, "more": rows}, sender(20)).payload
    assert torch.equal(both["delta"] - rows, noise)
    others = [
        noise[1],
        (apply(Noise(std=0.5), rows, turn=1) - rows)[0],
        (apply(Noise(std=0.5, stream="more"), rows) - rows)[0],
        (apply(Noise(std=0.5), rows, streams=Streams(8)) - rows)[0],
        (both["more"] - rows)[0],
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack((noise[0], other)))[0, 1])) < 0.071
    assert torch.equal(apply(Noise(std=0.0), rows), rows)


# torch splits the sum of a single row of more than 32,768 numbers over threads, which a norm must not show.
@pytest.mark.parametrize(("transform", "dimension"), [(Clip(max_norm=1.0), 33_001), (Noise(std=0.1), 1001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_client_is_transformed_alike_in_any_company(transform, dimension, dtype, monkeypatch):
    rows = torch.arange(6 * dimension, dtype=dtype).sin().reshape(6, dimension)
    kept, turns = rows.clone(), torch.tensor([3, 0, 3, 1, 2, 0])
    together = apply(transform, rows, turn=turns)
    assert together.dtype == dtype
    assert torch.equal(rows, kept)
    assert not torch.equal(together, rows)
    some = torch.tensor([5, 2])
    assert torch.equal(apply(transform, rows[some], clients=some, turn=turns[some]), together[some])
    assert torch.equal(apply(transform, rows[4:5], clients=torch.tensor([4]), turn=2), together[4:5])
    monkeypatch.setattr(transforms, "BLOCK", 2 * dimension)
    assert torch.equal(apply(transform, rows, turn=turns), together)


@pytest.mark.parametrize("transform", [Clip(max_norm=1.0), Noise(std=0.1)])
def test_nobody_sends_nothing(transform):
    assert apply(transform, torch.zeros(0, 10)).shape == (0, 10)


def test_bad_options():
    for make in (
        lambda: Clip(max_norm=0.0),
        lambda: Noise(std=-1.0),
        lambda: Noise(),
        lambda: Noise(std=1, vectors=()),
    ):
        with pytest.raises(InputError):
            make()


def test_what_a_vector_takes():
    assert Size.of(torch.zeros(3, 4)).nbytes == 48
    assert Size(3, 5).nbytes == 2
    assert Size(0, 5).nbytes == 0
    assert Size(3, 5, torch.tensor([0, 1, 2])).nbytes.tolist() == [2, 2, 3]


# --- Bytes of a chain


def test_each_transform_counts_from_what_the_one_before_left():
    """Of 10 numbers of 32 bits the largest 3 with places of 4 bits; of these, codes of 8 bits and a scale of 32."""
    rows = torch.tensor([[0.1, -5.0, 0.2, 3.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    who = {"transforms/0/delta/owed": torch.zeros(1, 10)}
    listed = (Largest(share=0.3), EightBits())
    one = send(listed[:1], rows, **who)
    assert one.payload["delta"].tolist() == [[0.0, -5.0, 0.0, 3.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]
    assert one.nbytes.tolist() == [-(-(3 * 32 + 3 * 4) // 8)] == [14]
    assert one.state["transforms/0/delta/owed"].tolist() == [[pytest.approx(0.1), 0.0, pytest.approx(0.2), *[0.0] * 7]]
    two = send(listed, rows, **who)
    assert two.nbytes.tolist() == [-(-(3 * 8 + 3 * 4 + 32) // 8)] == [9]
    arrived = two.payload["delta"]
    assert (arrived != 0).tolist() == (one.payload["delta"] != 0).tolist()
    assert ((arrived - one.payload["delta"]).abs() <= 5 / 127).all()
    # The other way round all ten get codes, of which the largest are sent.
    other = send((EightBits(), Largest(share=0.3)), rows, **{"transforms/1/delta/owed": torch.zeros(1, 10)})
    assert other.nbytes.tolist() == [9]
    plain = {"delta": Size(10, 32), "beside": Size(2, 32)}
    assert Chain(listed).sizes(plain) == {"delta": Size(3, 8, 12 + 32), "beside": Size(2, 32)}
    assert Chain(listed).state(Size(10, 32)) == {"transforms/0/delta/owed": (10,)}
    # What is remembered is as long as what the transform is handed.
    assert Chain((Largest(share=0.4), Largest(share=0.75))).state(Size(10, 32))["transforms/1/delta/owed"] == (4,)


def test_what_arrives_is_decoded_from_the_last_code_to_the_first():
    """The 2 largest of the 4 largest: 2 numbers, 4 places among 10 and 2 among 4, which is 64 + 16 + 4 bits."""
    rows = torch.tensor([[0.0, -5.0, 2.0, 3.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    who = {"transforms/0/delta/owed": torch.zeros(1, 10), "transforms/1/delta/owed": torch.zeros(1, 4)}
    crossed = send((Largest(share=0.4), Largest(share=0.5)), rows, **who)
    assert crossed.payload["delta"].tolist() == [[0.0, -5.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    assert crossed.nbytes.tolist() == [11]


def test_what_depends_on_the_numbers_is_counted_client_by_client(monkeypatch):
    """A bit for each of 4 numbers, and 32 for each that is not 0: 4, 36 and 132 bits."""
    rows = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    crossed = send((Sparse(),), rows)
    assert crossed.nbytes.tolist() == [1, 5, 17]
    assert torch.equal(crossed.payload["delta"], rows)
    assert Chain((Sparse(),)).sizes({"delta": Size(4, 32)})["delta"].nbytes == 17
    monkeypatch.setattr(transforms, "BLOCK", 4)  # a client at a time
    assert send((Sparse(),), rows).nbytes.tolist() == [1, 5, 17]


def test_a_transform_may_keep_state():
    rows = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 0.5]])
    who = {"clients": torch.tensor([3, 8]), "transforms/0/delta/owed": torch.zeros(2, 3)}
    first = send((Largest(share=0.34),), rows, **who)
    assert first.payload["delta"].tolist() == [[0.0, 2.0, 0.0], [0.0, -1.0, 0.0]]
    second = send((Largest(share=0.34),), rows, **who | first.state)
    # Owed 1, 0, 0 and 0, 0, 0.5 add to the rows: 2, 2, 0 and 0, -1, 1; the first of equals is sent.
    assert second.payload["delta"].tolist() == [[2.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
    assert second.state["transforms/0/delta/owed"].tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
    assert not who["transforms/0/delta/owed"].any()


def test_each_vector_has_its_own_memory():
    listed = (Largest(share=0.5, vectors=("a", "b")),)
    state = {name: torch.zeros(1, *shape) for name, shape in Chain(listed).state(Size(2, 64)).items()}
    payload = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[4.0, 3.0]])}
    state = Chain(listed).apply(payload, Sender(torch.tensor([0]), STREAMS, 0, state)).state
    owed = {"transforms/0/a/owed": [[1.0, 0.0]], "transforms/0/b/owed": [[0.0, 3.0]]}
    assert {name: kept.tolist() for name, kept in state.items()} == owed
    # A message that lacks one of them leaves what is remembered of it.
    again = Chain(listed).apply({"a": payload["a"]}, Sender(torch.tensor([0]), STREAMS, 0, state)).state
    assert again["transforms/0/b/owed"].tolist() == [[0.0, 3.0]]


@options
class Overspends(Transform):
    """Takes a byte more than it says."""

    def encode(self, vector):
        return vector.coded(vector.rows, replace(vector.size, beside=8))


@options
class Loses(Transform):
    """Sends a number less, and does not say so."""

    def encode(self, vector):
        return vector.coded(vector.rows[:, 1:])


@pytest.mark.parametrize(
    ("transform", "said"), [(Overspends(), "takes 17 bytes, and 16 at most are declared"), (Loses(), "3 numbers")]
)
def test_transforms_are_held_to_what_they_declare(transform, said):
    with pytest.raises(BrokenPromiseError, match=said):
        send((transform,), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"delta": torch.ones(1, 5)}, "transforms.0.vectors = delta: has 5 numbers, and owed is remembered"),
        ({"delta": torch.ones(1, 4, dtype=torch.int32)}, "transforms.0.vectors = delta: its numbers are whole"),
    ],
)
def test_vectors_that_cannot_be_transformed_are_refused(payload, said):
    with pytest.raises(InputError, match=said):
        Chain((Largest(share=0.5),)).apply(payload, sender(1, **{"transforms/0/delta/owed": torch.zeros(1, 4)}))


# --- In a run


SCAFFOLD = {"strategy": {"kind": "scaffold"}, "client": {"kind": "scaffold", "epochs": 1}}
BOTH = ["delta", "control-delta"]


def test_vectors_beside_the_change_must_be_named():
    clip = {"kind": "clip", "max_norm": 0.01}
    with pytest.raises(InputError, match=r"transforms\.0\.vectors = .nothing.: name what it goes over.*control-delta"):
        small(**SCAFFOLD, transforms=[clip])
    with pytest.raises(InputError, match=r"transforms\.0\.vectors = beta: no such vector.*control-delta, delta"):
        small(**SCAFFOLD, transforms=[clip | {"vectors": ["delta", "beta"]}])
    norms = []
    for vectors in (["delta"], BOTH):
        simulation = build_simulation(small(**SCAFFOLD, transforms=[clip | {"vectors": vectors}]), small_problem())
        replies = replies_of(simulation)
        assert simulation.step()["bytes_up"] == 4 * 2 * 83 * 8
        told = replies[0].payload
        norms.append((told["delta"].norm(dim=1), told["control-delta"].norm(dim=1)))
    assert torch.allclose(norms[0][0], torch.full((4,), 0.01).double())
    assert (norms[0][1] > 0.01).all()
    assert torch.allclose(torch.hypot(*norms[1]), torch.full((4,), 0.01).double())


def replies_of(simulation):
    """Where the replies of each window will be noted."""
    noted, collect = [], simulation.parts.engine.collect

    def collected(*window):
        replies = collect(*window)
        noted.extend([] if replies is None else [replies])
        return replies

    simulation.parts.engine.collect = collected
    return noted


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("executor", ["stacked", "loop", "process"])
def test_a_run_counts_what_crossed(executor):
    simulation = build_simulation(small(4, transforms=CHAIN, engine={"executor": executor}), small_problem())
    replies, rows = replies_of(simulation), list(simulation)
    spent = [int(codes.taken(told.payload["delta"], 64).sum()) for told in replies]
    assert [row["bytes_up"] for row in rows] == spent
    assert len(set(spent)) > 1
    assert max(spent) < 4 * codes.most(83, 64)
    # What was owed is remembered, though clients are chosen anew in each round.
    state = simulation.snapshot()["engine"]["store"]
    assert set(state) == {"clients", "transforms/0/delta/owed"}


def test_the_clock_goes_by_what_may_cross_and_the_ledger_by_what_did():
    """A byte a second up: an order takes its second and the most that a reply may be, and fewer bytes are counted.

    62 numbers of 8 bits, a bit and a place of 7 bits each, and a scale of 64 bits: 132 bytes.
    """
    assert codes.most(83, 64) == 132
    simulation = build_simulation(
        small(3, transforms=CHAIN, devices={"bandwidth": {"up": 1.0, "down": 1e9}}), small_problem()
    )
    replies, rows = replies_of(simulation), list(simulation)
    for number, (row, told) in enumerate(zip(rows, replies, strict=True), start=1):
        taken = codes.taken(told.payload["delta"], 64)
        assert (taken < 132).any()
        assert row["bytes_up"] == int(taken.sum())
        assert row["time"] == pytest.approx(number * (1 + 132), rel=1e-6)


def test_replies_that_arrive_in_any_window_are_counted_in_it():
    """Clients of 1 s to 6 s, windows of 2 s: each window counts those that it holds."""
    strategy = {"kind": "fedfix", "window": 2.0}
    devices = {"compute": {"kind": "uniform", "low": 1.0, "high": 6.0}}
    everybody, each = {"kind": "uniform", "fraction": 1.0}, {"every": 1}
    experiment = small(8, strategy=strategy, devices=devices, selection=everybody, evaluation=each, transforms=CHAIN)
    simulation = build_simulation(experiment, small_problem())
    replies, rows = replies_of(simulation), list(simulation)
    assert {len(told) for told in replies} != {6}
    assert [row["bytes_up"] for row in rows] == [int(codes.taken(t.payload["delta"], 64).sum()) for t in replies]


@pytest.mark.parametrize("fault", ["duplicate", "non_finite"])
def test_what_comes_twice_or_is_spoiled_has_crossed(fault):
    """Every reply of the second kind is left out, and has cost its bytes; of the first each costs them twice."""
    tables = {"transforms": CHAIN, "selection": {"kind": "uniform", "fraction": 1.0}}
    plain = build_simulation(small(1, **tables), small_problem())
    told = replies_of(plain)
    plain.step()
    each = codes.taken(told[0].payload["delta"], 64)
    faulty = build_simulation(small(1, **tables, faults={fault: {"rate": 1.0, "clients": [3]}}), small_problem())
    again = int(each[3]) if fault == "duplicate" else 0
    assert faulty.step()["bytes_up"] == int(each.sum()) + again


def test_a_selector_that_asks_for_utilities_counts_them_beside():
    tables = {"transforms": CHAIN, "selection": {"kind": "oort", "count": 4}}
    simulation = build_simulation(small(2, **tables), small_problem())
    replies, rows = replies_of(simulation), list(simulation)
    for row, told in zip(rows, replies, strict=True):
        assert row["bytes_up"] == int(codes.taken(told.payload["delta"], 64).sum()) + 8 * len(told)
