"""Dropout held to the draws that name it, drawn by NumPy and by the compiled loop."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from fedsim.core.streams import Streams
from fedsim.nets import dropout
from fedsim.nets.dropout import Draw, NamedDropout, drawing
from fedsim.running.lockstep import JointStreams

COMPILED = pytest.param(0, marks=pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed"))


@pytest.fixture(params=[10**9, COMPILED], ids=["drawn by NumPy", "compiled"])
def way(request, monkeypatch):
    monkeypatch.setattr(dropout, "WORTH_COMPILING", request.param)


def test_dropout_keeps_the_mean_and_rests_in_evaluation():
    layer, ones = NamedDropout(0.25, "d"), torch.ones(8, 1000)
    assert torch.equal(layer(ones), ones)
    with drawing(Draw(Streams(0), torch.arange(8), 0, 0), stacked=True):
        dropped = layer(ones)
    # 8,000 draws: the share kept is 0.75 within five standard errors, 5 x sqrt(0.75 x 0.25 / 8000) = 0.024.
    assert abs(float((dropped > 0).float().mean()) - 0.75) < 0.024
    assert set(dropped.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize("p", [0.1, 0.25, 0.3, 0.5, 0.7, 0.9999999, 1.0])
@pytest.mark.usefixtures("way")
def test_it_keeps_what_a_uniform_draw_of_its_name_says(p):
    clients = torch.arange(3)
    with drawing(Draw(Streams(0), clients, 5, 2), stacked=True):
        kept = NamedDropout(p, "d")(torch.ones(3, 4, 500)) > 0
    assert torch.equal(kept, Streams(0).uniform("dropout/d/0", clients, (4, 500), turn=5, step=2) >= p)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.usefixtures("way")
def test_the_least_word_that_is_kept_is_that_of_p_itself(place):
    """Of a client's words some have all of their last 8 bits 0, and some 1: p is made from such a one.

    place: of the word among the four of a block, in the midst of a draw and as the last of one.
    """
    draw = Draw(Streams(0), torch.arange(1), 5, 2)
    words = Streams(0).bits("d", draw.clients, 10_000, turn=5, step=2)[0]
    for last, kept in ((0, True), (255, False)):
        at = 4 * int((words[place::4] % 256 == last).nonzero()[0]) + place
        p = (int(words[at]) + (not kept)) / 2**32
        assert bool(dropout.keep(draw, "d", 10_000, p)[0, at]) is kept
        assert bool(dropout.keep(draw, "d", at + 1, p)[0, at]) is kept


@pytest.mark.parametrize("count", [1, 4, 6, 7])
@pytest.mark.usefixtures("way")
def test_clients_of_several_runs_and_turns_have_what_they_have_alone(count):
    turns = torch.tensor([4, 0, 2**31])
    together = dropout.keep(Draw(JointStreams((3, 2**40), 2), torch.tensor([1, 2, 3]), turns, 6), "d", count, 0.5)
    for row, (seed, client) in enumerate(((3, 1), (2**40, 0), (2**40, 1))):
        words = Streams(seed).bits("d", torch.tensor([client]), count, turn=int(turns[row]), step=6)
        assert torch.equal(together[row], words[0] >= 2**31)


def test_what_is_worth_it_is_compiled(monkeypatch):
    pytest.importorskip("numba")  # which has no wheels for some machines
    monkeypatch.setattr(Streams, "bits", None)
    assert dropout.keep(Draw(Streams(0), torch.arange(2), 0, 0), "d", 25_000, 0.5).shape == (2, 25_000)
    with pytest.raises(TypeError):
        dropout.keep(Draw(Streams(0), torch.arange(2), 0, 0), "d", 24_999, 0.5)
