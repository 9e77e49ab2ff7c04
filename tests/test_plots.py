"""Pictures are drawn whatever was measured, show what they should and touch no global state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from fedsim import plots
from fedsim.runfolder import StorageError


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that are saved, to look into."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def row(number: int, **measured: object) -> dict[str, object]:
    return {
        "round": number,
        "time": 1.0 * number,
        "wall": 0.1,
        "clients": 10,
        "bytes_up": 1,
        "queries": 0,
        **measured,
    }


def assert_is_picture(path: Path) -> None:
    """At least 400 x 250 points, and ink on between 0.5 % and 95 % of them: not a blank sheet, not a blot."""
    points = imread(path)[..., :3]
    assert points.shape[0] >= 250
    assert points.shape[1] >= 400
    assert 0.005 < np.mean(points.min(axis=2) < 0.97) < 0.95


def lines(axis) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [tuple(point) for point in line.get_xydata()] for line in axis.lines}


def test_curves_show_each_number_at_its_round(tmp_path, figures):
    rows = [
        row(1, train_loss=2.0, client_accuracy_worst=0.0),
        row(
            2,
            train_loss=1.5,
            test_loss=1.8,
            test_accuracy=0.5,
            client_accuracy_mean=0.4,
            client_accuracy_p10=0.1,
        ),
        row(3, train_loss=None),
        row(
            4,
            train_loss=1.0,
            test_loss=1.2,
            test_accuracy=0.7,
            client_accuracy_mean=0.6,
            client_accuracy_p10=0.3,
        ),
    ]
    assert plots.curves(rows, tmp_path / "curves.png")
    assert_is_picture(tmp_path / "curves.png")
    loss, accuracy = figures[0].axes
    assert lines(loss) == {"training": [(1, 2.0), (2, 1.5), (4, 1.0)], "test set": [(2, 1.8), (4, 1.2)]}
    # The worst client has no line, and the 10th percentile is the lower edge of a band.
    assert lines(accuracy) == {"test set": [(2, 0.5), (4, 0.7)], "clients, mean": [(2, 0.4), (4, 0.6)]}
    (band,) = accuracy.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {
        (2, 0.1),
        (4, 0.3),
        (2, 0.4),
        (4, 0.6),
    }
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy (share of examples)")


def test_curves_without_accuracy_have_one_panel(tmp_path, figures):
    assert plots.curves([row(1, train_loss=2.0), row(2, train_loss=1.0)], tmp_path / "curves.png")
    assert [axis.get_ylabel() for axis in figures[0].axes] == ["loss"]


def test_other_metrics_get_panels_of_their_own_and_wide_ranges_a_logarithm(tmp_path, figures):
    rows = [row(number, test_gap=10.0**-number, test_distance=1.0 / number) for number in range(1, 9)]
    assert plots.curves(rows, tmp_path / "curves.png")
    assert_is_picture(tmp_path / "curves.png")
    assert [(axis.get_ylabel(), axis.get_yscale()) for axis in figures[0].axes] == [
        ("gap", "log"),
        ("distance", "linear"),
    ]


def test_a_single_round_is_a_visible_point(tmp_path):
    assert plots.curves([row(1, train_loss=2.0, client_accuracy_mean=0.5, client_accuracy_p10=0.2)], tmp_path / "a.png")
    assert_is_picture(tmp_path / "a.png")


@pytest.mark.parametrize("rows", [[], [row(1)], [row(1, train_loss=None)]])
def test_nothing_measured_is_no_picture(tmp_path, rows):
    assert not plots.curves(rows, tmp_path / "curves.png")
    assert not plots.compare_curves({"a": [rows]}, tmp_path / "compare.png")
    assert not list(tmp_path.iterdir())


def test_a_strategys_own_numbers_are_shown_only_when_nothing_else_is(tmp_path):
    assert plots.measured(["round", "wall", "train_loss", "staleness"]) == ["train_loss"]
    assert plots.measured(["round", "wall", "value", "failed"]) == ["value"]


def test_compared_groups_have_mean_and_deviation_at_common_rounds(tmp_path, figures):
    group = [
        [row(1, test_accuracy=0.2), row(2, test_accuracy=0.5), row(3, test_accuracy=0.9)],
        [row(1, test_accuracy=0.4), row(2, test_accuracy=0.7)],
    ]
    single = [[row(1, test_accuracy=0.1, train_loss=1.0), row(2, test_accuracy=0.2, train_loss=0.5)]]
    assert plots.compare_curves({"two": group, "one": single}, tmp_path / "compare.png")
    assert_is_picture(tmp_path / "compare.png")
    loss, accuracy = figures[0].axes
    (first, second) = accuracy.lines
    np.testing.assert_allclose(first.get_xydata(), [(1, 0.3), (2, 0.6)])
    np.testing.assert_allclose(second.get_xydata(), [(1, 0.1), (2, 0.2)])
    # Two values a distance 0.2 apart deviate by 0.2 / sqrt(2) = 0.1414 from their mean, with n - 1 = 1.
    (band,) = accuracy.collections
    corners = {tuple(np.round(point, 4)) for point in band.get_paths()[0].vertices}
    assert corners == {(1, 0.1586), (1, 0.4414), (2, 0.4586), (2, 0.7414)}
    assert len(loss.lines) == 1
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["one", "two (2 seeds)"]


def test_few_clients_are_bars_whose_lengths_are_counts(tmp_path, figures):
    labels = np.array([0, 1, 1, 2, 2, 2])
    # Client 0 has examples 5, 0, 1 (labels 2, 0, 1); client 1 nothing; client 2 examples 2, 3 (labels 1, 2).
    plots.label_distribution(labels, np.array([0, 3, 3, 5]), np.array([5, 0, 1, 2, 3]), 3, tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")
    widths = [[bar.get_width() for bar in bars] for bars in figures[0].axes[0].containers]
    assert widths == [[1, 0, 0], [1, 0, 1], [1, 0, 1]]  # by class, then by client


def test_many_clients_are_a_heat_map_of_shares(tmp_path, figures):
    # Client c of 100 has c + 1 examples, all of class c mod 4, but client 7 has none.
    sizes = np.arange(1, 101)
    sizes[7] = 0
    labels = np.repeat(np.arange(100) % 4, sizes)
    plots.label_distribution(
        labels, np.concatenate(([0], np.cumsum(sizes))), np.arange(len(labels)), 4, tmp_path / "p.png"
    )
    assert_is_picture(tmp_path / "p.png")
    above, below = figures[0].axes[:2]
    expected = np.eye(4)[np.arange(100) % 4].T
    expected[:, 7] = np.nan
    np.testing.assert_array_equal(above.images[0].get_array().filled(np.nan), expected)
    assert above.get_title(loc="left") == "Labels of 100 clients"
    np.testing.assert_array_equal(below.patches[0].get_data().values, sizes)


def test_a_hundred_thousand_clients_are_sampled_and_the_title_says_so(tmp_path, figures):
    clients = 100_000
    labels = np.repeat(np.arange(clients) % 10, 3)
    plots.label_distribution(labels, np.arange(clients + 1) * 3, np.arange(3 * clients), 10, tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")
    above = figures[0].axes[0]
    assert above.get_title(loc="left") == "Labels of 100,000 clients: a sample of 500, evenly spaced by id"
    assert above.images[0].get_array().shape == (10, 500)
    assert above.images[0].get_extent() == [-0.5, 99_999.5, 9.5, -0.5]


def test_many_classes_are_a_heat_map_even_for_few_clients(tmp_path, figures):
    plots.label_distribution(np.arange(62), np.array([0, 31, 62]), np.arange(62), 62, tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")
    assert figures[0].axes[0].images[0].get_array().shape == (62, 2)


def test_real_targets_are_shown_in_quantile_bins(tmp_path, figures):
    targets = np.linspace(0.0, 100.0, 101)
    plots.label_distribution(targets, np.array([0, 50, 101]), np.arange(101), None, tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")
    (legend,) = figures[0].legends
    bins = [text.get_text() for text in legend.get_texts()]
    assert bins == ["0 to 20", "20 to 40", "40 to 60", "60 to 80", "80 to 100"]
    # Targets 0 to 49 are client 0's: 20 in each of the first two bins, 10 in the third. The last bin has its
    # upper edge too.
    widths = [[bar.get_width() for bar in bars] for bars in figures[0].axes[0].containers]
    assert widths == [[20, 0], [20, 0], [10, 10], [0, 20], [0, 21]]


@pytest.mark.parametrize("targets", [np.full(6, 3.5), np.array([0.0, 0, 0, 0, 0, 9])])
def test_targets_that_repeat_make_fewer_bins(tmp_path, targets):
    plots.label_distribution(targets, np.array([0, 3, 6]), np.arange(6), None, tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")


def test_a_picture_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        plots.curves([row(1, train_loss=1.0)], tmp_path / "absent" / "curves.png")


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, fedsim.comparison; sys.exit('matplotlib' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_drawing_does_not_import_pyplot(tmp_path):
    code = "import sys, pathlib; from fedsim.plots import curves; "
    code += "curves([dict(round=1, train_loss=1.0)], pathlib.Path(sys.argv[1])); "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "c.png"], check=False).returncode == 0
