from dataclasses import dataclass

import pytest
import torch

import fedsim.transforms as transforms
from fedsim.errors import InputError
from fedsim.streams import Streams
from fedsim.transforms import Clip, Noise

STREAMS = Streams(7)


def apply(transform, rows, *, clients=None, round=0, streams=STREAMS):  # noqa: A002
    clients = torch.arange(len(rows)) if clients is None else clients
    made, state = transform.apply(rows, {}, clients, streams, round)
    assert state == {}
    return made


def test_clip_by_hand():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [-30.0, 40.0]])
    # Norms 5, 0.5, 0 and 50, to at most 2.
    expected = torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0], [-1.2, 1.6]])
    clipped = apply(Clip(max_norm=2.0), rows)
    torch.testing.assert_close(clipped, expected)
    assert torch.equal(clipped[1:3], rows[1:3])
    # The squares of 1e30 are beyond single precision.
    torch.testing.assert_close(apply(Clip(max_norm=2.0), 1e30 * rows[:1]), expected[:1])


def test_noise_has_its_deviation_and_its_own_streams():
    rows = torch.ones(20, 5000)
    noise = apply(Noise(std=0.5), rows) - rows
    # 100,000 normals: the mean's deviation is 0.5 / 316 = 0.0016, the deviation's 0.5 / 447 = 0.0011.
    assert abs(float(noise.mean())) < 5 * 0.0016
    assert abs(float(noise.std()) - 0.5) < 5 * 0.0011
    # Correlations between two clients, two rounds, two names and two seeds: 0 within 5 / sqrt(5000).
    others = [
        noise[1],
        (apply(Noise(std=0.5), rows, round=1) - rows)[0],
        (apply(Noise(std=0.5, stream="more"), rows) - rows)[0],
        (apply(Noise(std=0.5), rows, streams=Streams(8)) - rows)[0],
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack((noise[0], other)))[0, 1])) < 0.071
    assert torch.equal(apply(Noise(std=0.0), rows), rows)


# torch splits the sum of a single row of more than 32,768 numbers over threads, which a norm must not show.
@pytest.mark.parametrize(("transform", "dimension"), [(Clip(max_norm=1.0), 33_001), (Noise(std=0.1), 1001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_client_is_transformed_alike_in_any_company(transform, dimension, dtype, monkeypatch):
    rows = torch.arange(6 * dimension, dtype=dtype).sin().reshape(6, dimension)
    kept = rows.clone()
    together = apply(transform, rows, round=3)
    assert together.dtype == dtype
    assert torch.equal(rows, kept)
    assert not torch.equal(together, rows)
    some = torch.tensor([5, 2])
    assert torch.equal(apply(transform, rows[some], clients=some, round=3), together[some])
    assert torch.equal(apply(transform, rows[4:5], clients=torch.tensor([4]), round=3), together[4:5])
    monkeypatch.setattr(transforms, "BLOCK", 2 * dimension)
    assert torch.equal(apply(transform, rows, round=3), together)


@pytest.mark.parametrize("transform", [Clip(max_norm=1.0), Noise(std=0.1)])
def test_payload_and_an_empty_cohort(transform):
    assert transform.nbytes(10, 4) == 40
    assert transform.init(10) == {}
    empty = apply(transform, torch.zeros(0, 10))
    assert empty.shape == (0, 10)


def test_bad_options():
    for make in (lambda: Clip(max_norm=0.0), lambda: Noise(std=-1.0), lambda: Noise()):
        with pytest.raises(InputError):
            make()


@dataclass(frozen=True)
class Largest:
    """The one largest coordinate, what was not sent being kept for the next time: a transform with state."""

    def init(self, dimension):
        return {"owed": (dimension,)}

    def apply(self, rows, state, clients, streams, round):  # noqa: A002
        due = rows + state["owed"]
        where = due.abs().argmax(dim=1, keepdim=True)
        sent = torch.zeros_like(due).scatter(1, where, due.gather(1, where))
        return sent, {"owed": due - sent}

    def nbytes(self, dimension, itemsize):
        return 4 + itemsize


def test_a_transform_may_keep_state_and_shrink_the_payload():
    transform: transforms.Transform = Largest()
    clients = torch.tensor([3, 8])
    state = {name: torch.zeros(2, *shape) for name, shape in transform.init(3).items()}
    rows = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 0.5]])
    sent, state = transform.apply(rows, state, clients, STREAMS, 0)
    assert sent.tolist() == [[0.0, 2.0, 0.0], [0.0, -1.0, 0.0]]
    sent, state = transform.apply(rows, state, clients, STREAMS, 1)
    # Owed 1, 0, 0 and 0, 0, 0.5 add to the rows: 2, 2, 0 and 0, -1, 1; the first of equals is sent.
    assert sent.tolist() == [[2.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
    assert state["owed"].tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
    assert transform.nbytes(3, 4) == 8
