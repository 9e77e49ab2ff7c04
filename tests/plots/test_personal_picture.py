"""The picture of own models has every client where its numbers say, and is drawn whatever these are."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fedsim.plots.personal import gain_of, personal
from fedsim.plots.style import BRIGHT

drawing = import_module("fedsim.plots.personal")
COLUMNS: dict[str, list[Any]] = {
    "client": [0, 1, 2, 3],
    "examples": [4, 4, 4, 0],
    "train_examples": [10, 40, 20, 30],
    "label_distance": [0.25, 0.5, 0.75, 0.125],
    "participation": [3, 1, 0, 2],
    "loss": [0.5, 0.5, 0.5, None],
    "accuracy": [0.5, 1.0, 0.25, None],
    "personal_loss": [0.25, 0.75, 0.5, None],
    "personal_accuracy": [0.75, 0.75, 0.25, None],
}
"""One is better off with its own model, one worse, one as well; the last has no examples to be judged on."""


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that would be written, to look into."""
    saved: list[Figure] = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: saved.append(figure))
    return saved


def without(*names: str, **columns: list[Any]) -> dict[str, list[Any]]:
    return {name: values for name, values in COLUMNS.items() if name not in names} | columns


def looks(axis: Any) -> Any:
    """Dots of clients that have taken part, and rings of the others."""
    return axis.collections[-2:]


def dots(axis: Any) -> tuple[list[tuple[float, ...]], ...]:
    """Where they are."""
    return tuple([tuple(point) for point in part.get_offsets().tolist()] for part in looks(axis))


def test_each_client_is_where_its_numbers_say(figures):
    assert personal(COLUMNS, Path("p.png"))
    against, by_examples, by_labels = figures[0].axes
    # rings: client 2, which has not taken part
    assert dots(against) == ([(0.5, 0.75), (1.0, 0.75)], [(0.25, 0.25)])
    assert dots(by_examples) == ([(10.0, 0.25), (40.0, -0.25)], [(20.0, 0.0)])
    assert dots(by_labels) == ([(0.25, 0.25), (0.5, -0.25)], [(0.75, 0.0)])
    assert [axis.get_xscale() for axis in (against, by_examples, by_labels)] == ["linear", "log", "linear"]
    (diagonal,) = against.lines
    assert np.ptp(diagonal.get_xydata(), axis=1).tolist() == [0.0, 0.0]
    assert [line.get_ydata() for line in by_labels.lines] == [[0.0, 0.0]]
    title = figures[0].get_suptitle()
    assert title == "Own models of 3 clients: 1 better than the global model, 1 as good, 1 worse"
    ring = looks(against)[1]
    assert (ring.get_facecolors().size, to_hex(ring.get_edgecolors()[0])) == (0, BRIGHT[1].lower())
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["has taken part", "has not taken part"]


def test_without_a_model_for_all_own_ones_are_drawn_alone(figures):
    assert personal(without("accuracy", "loss", participation=[1, 1, 1, 1]), Path("p.png"))
    by_examples, by_labels = figures[0].axes
    assert dots(by_examples) == ([(10.0, 0.75), (40.0, 0.75), (20.0, 0.25)], [])
    assert dots(by_labels)[0] == [(0.25, 0.75), (0.5, 0.75), (0.75, 0.25)]
    assert not by_labels.lines
    assert by_labels.get_ylabel() == "accuracy of the own model"
    assert (figures[0].get_suptitle(), figures[0].legends) == ("Own models of 3 clients", [])


def test_of_losses_the_smaller_is_the_better(figures):
    numbers = without("accuracy", "personal_accuracy", "label_distance")
    assert gain_of(numbers) == pytest.approx([0.25, -0.25, 0.0, np.nan], nan_ok=True)
    assert personal(numbers, Path("p.png"))
    against, by_examples = figures[0].axes
    assert dots(against) == ([(0.5, 0.25), (0.5, 0.75)], [(0.5, 0.5)])
    assert dots(by_examples) == ([(10.0, 0.25), (40.0, -0.25)], [(20.0, 0.0)])
    assert by_examples.get_ylabel() == "loss saved by the own model"
    assert against.get_xscale() == "linear"
    numbers["loss"] = [0.5, 30.0, 0.5, None]  # 120 times the least
    assert personal(numbers, Path("p.png"))
    assert [figures[1].axes[0].get_xscale(), figures[1].axes[0].get_yscale()] == ["log", "log"]


def test_accuracies_count_where_there_are_both():
    assert gain_of(COLUMNS) == pytest.approx([0.25, -0.25, 0.0, np.nan], nan_ok=True)
    assert gain_of(without("accuracy")) is None
    assert gain_of(without("accuracy", "personal_accuracy", "loss")) is None
    assert gain_of(without("personal_accuracy", "personal_loss")) is None


def test_clusters_show_who_is_in_which(figures):
    assert personal(without("label_distance", cluster=[7, 2, 7, 2]), Path("p.png"))
    *_, clusters = figures[0].axes
    filled, rings = dots(clusters)
    assert (filled, rings) == ([(0.0, 1.0), (1.0, 0.0)], [(2.0, 1.0)])  # those of cluster 2 above
    assert [text.get_text() for text in clusters.get_yticklabels()] == ["2 (1)", "7 (2)"]  # client 3 has no number
    colours = [[to_hex(colour) for colour in looks(axis)[0].get_facecolors()] for axis in figures[0].axes]
    assert colours == [[BRIGHT[0].lower(), BRIGHT[2].lower()]] * 3  # 7 = 0 modulo seven colours


def test_a_line_goes_through_means_of_equally_many_who_have_the_same_among_them(figures):
    """80 clients of 1, 2, ..., 80 examples, ten a bin; then 20 of them have as many."""
    examples = list(range(80, 0, -1))
    gains = [count / 100 for count in examples]
    numbers = {"client": examples, "participation": [1] * 80, "train_examples": examples, "accuracy": [0.0] * 80}
    assert personal(numbers | {"personal_accuracy": gains}, Path("p.png"))
    (line,) = (line for line in figures[0].axes[1].lines if line.get_marker() == "o")
    assert line.get_xdata() == pytest.approx(5.5 + 10 * np.arange(8))
    assert line.get_ydata() == pytest.approx((5.5 + 10 * np.arange(8)) / 100)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["mean of an eighth of the clients"]
    same = [max(count, 20) for count in examples]
    assert personal(numbers | {"personal_accuracy": gains, "train_examples": same}, Path("p.png"))
    (line,) = (line for line in figures[1].axes[1].lines if line.get_marker() == "o")
    assert line.get_xdata()[:2] == pytest.approx([20.0, 25.5])
    assert line.get_ydata()[:2] == pytest.approx([0.105, 0.255])  # of 1 to 20, and of 21 to 30
    fewer = {name: values[1:] for name, values in numbers.items()}
    assert personal(fewer | {"personal_accuracy": gains[1:]}, Path("p.png"))
    assert not [line for line in figures[2].axes[1].lines if line.get_marker() == "o"]


def test_of_many_clients_a_sample_has_dots(figures, monkeypatch):
    monkeypatch.setattr(drawing, "DOTS", 3)
    numbers = {"client": list(range(9)), "participation": [1] * 9, "train_examples": [1] * 9}
    numbers |= {"personal_accuracy": [n / 10 for n in range(9)]}
    assert personal(numbers, Path("p.png"))
    assert dots(figures[0].axes[0])[0] == [(1.0, 0.0), (1.0, 0.4), (1.0, 0.8)]
    assert figures[0].get_suptitle() == "Own models of 9 clients; dots are 3 of them, evenly spaced by id"
    assert personal({name: values[:3] for name, values in numbers.items()}, Path("p.png"))
    assert figures[1].get_suptitle() == "Own models of 3 clients"


@pytest.mark.parametrize("count", [1, 3])
def test_equal_numbers_are_drawn(tmp_path, count):
    numbers = {name: [0.5] * count for name in ("accuracy", "personal_accuracy", "label_distance", "cluster")}
    numbers |= {"client": list(range(count)), "participation": [0] * count, "train_examples": [5] * count}
    assert personal(numbers, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_where_nobody_has_a_number_nothing_is_drawn(tmp_path):
    assert not personal(without(personal_accuracy=[None] * 4), tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
