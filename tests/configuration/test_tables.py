"""Experiment files: overrides, defaults, schedules, and the pair of strategy and client."""

from __future__ import annotations

import sys

import pytest

import fedsim
from clients.fedzo import FedZO
from clients.sgd import Sgd
from clients.zeroth_order.differences import Differences
from fedsim.attacks.gradient import FGSM
from fedsim.configuration.evaluation import Evaluation, Stopping
from fedsim.configuration.tables import described, override
from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.core.schedules import Constant, Cosine, Exponential, Linear, Step
from fedsim.devices.compute import LogNormal
from fedsim.devices.fleet import Devices
from fedsim.engine.options import EngineOptions
from fedsim.exchange.aggregation import Median
from fedsim.exchange.transforms import Clip
from fedsim.problems.datasets.embedded import Digits
from fedsim.problems.models.dense import MLP
from fedsim.problems.supervised import SupervisedOptions
from strategies.fedbuff import FedBuff
from strategies.fedzo import FedZO as Server


def written(tmp_path, text: str):
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return path


def test_overrides_are_toml_and_bare_words_are_strings(tmp_path):
    path = written(tmp_path, 'rounds = 3\n[client]\nkind = "sgd"\nepochs = 1\n')
    loaded = fedsim.load(
        path,
        overrides=["client.lr=0.5", "strategy.kind=fedprox", "problem.model.hidden=[3, 4]", "problem.model.kind=mlp"],
        seed=7,
    )
    assert (loaded.client.lr, type(loaded.strategy).__name__) == (0.5, "FedProx")
    assert loaded.problem.made["model"].hidden == (3, 4)
    assert (loaded.rounds, loaded.seed) == (3, 7)


def test_a_plug_in_named_without_options_can_be_given_one(tmp_path):
    path = written(tmp_path, '[problem]\nmodel = "mlp"\n')
    assert fedsim.load(path, overrides=["problem.model.hidden=[5]"]).problem.made["model"].hidden == (5,)


def test_an_empty_file_is_an_experiment(tmp_path):
    loaded = fedsim.load(written(tmp_path, ""))
    assert loaded.rounds == 100
    assert loaded.client.epochs == 1


def test_the_experiment_itself_is_not_changed_by_running_or_reseeding():
    first = fedsim.experiment(seed=1)
    second = first.with_seed(2)
    assert (first.seed, second.seed) == (1, 2)
    assert first.resolved() | {"seed": 2} == second.resolved()


@pytest.mark.parametrize(
    "tables",
    [
        {"strategy": 3},
        {"problem": "digits"},
        {"transforms": {"kind": "clip"}},
        {"transforms": [{"kind": "clip"}]},
        {"client": {"epochs": 1}},
        {"engine": {"executor": "fast"}},
        {"evaluation": {"every": -1}},
    ],
)
def test_tables_of_the_wrong_form_are_refused(tables):
    with pytest.raises(InputError) as caught:
        fedsim.experiment(**tables)
    assert str(caught.value).startswith(next(iter(tables)))


def test_schedules_are_their_formulas():
    assert Constant().factor(7) == 1.0
    assert Exponential(gamma=0.5).factor(3) == 0.125
    assert [Step(every=2, gamma=0.1).factor(r) for r in (0, 1, 2, 5)] == pytest.approx([1, 1, 0.1, 0.01])
    # Cosine from 1 to 0.2 over 4 rounds: half-way is 0.6, a quarter of the way 0.6 + 0.4 cos(pi / 4).
    cosine = Cosine(rounds=4, end=0.2)
    assert [cosine.factor(r) for r in (0, 1, 2, 4, 9)] == pytest.approx([1, 0.6 + 0.4 * 0.5**0.5, 0.6, 0.2, 0.2])
    assert [Linear(rounds=4, end=0.2).factor(r) for r in (0, 1, 4, 9)] == pytest.approx([1, 0.8, 0.2, 0.2])


def test_none_takes_an_option_away_and_only_one_that_is_there(tmp_path):
    path = written(tmp_path, '[client]\nkind = "sgd"\nepochs = 1\n')
    assert fedsim.load(path, overrides=["client.epochs=none", "client.steps=3"]).client.steps == 3
    for absent in ("client.epoch=none", "stopping.patience=none"):
        with pytest.raises(InputError, match="there is no"):
            fedsim.load(path, overrides=[absent])


def test_a_new_kind_keeps_the_options_that_it_has(tmp_path):
    path = written(tmp_path, '[partition]\nkind = "dirichlet"\nclients = 7\nalpha = 0.3\n')
    loaded = fedsim.load(path, overrides=["partition.kind=iid"])
    assert (type(loaded.partition).__name__, loaded.partition.clients) == ("IID", 7)


def test_a_name_that_is_no_identifier_is_named():
    with pytest.raises(InputError, match=r"^client\.batch-size = 4"):
        fedsim.experiment(client={"kind": "sgd", "epochs": 1, "batch-size": 4})


def test_set_adds_to_the_table_that_is_there_by_default(tmp_path):
    (tmp_path / "bare.toml").write_text("rounds = 3")
    loaded = fedsim.load(tmp_path / "bare.toml", overrides=["client.epochs=3", "selection.fraction=0.5"])
    assert (loaded.client.epochs, loaded.selection.fraction) == (3, 0.5)
    other = fedsim.load(tmp_path / "bare.toml", overrides=["client.steps=7", "selection.count=4"])
    assert (other.client.steps, other.selection.count) == (7, 4)
    with pytest.raises(InputError, match=r"selection\.fraction = 1\.5"):
        fedsim.load(tmp_path / "bare.toml", overrides=["selection.fraction=1.5"])


def test_set_adds_to_a_plug_in_that_another_has_by_default(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("rounds = 3\n")
    momentum = fedsim.load(path, overrides=["client.optimizer.momentum=0.9"]).client
    assert described("optimizers", momentum.rule) == {"kind": "sgd", "momentum": 0.9, "nesterov": False}
    adam = fedsim.load(path, overrides=["client.optimizer.beta1=0.8", "client.optimizer.kind=adam"]).client
    assert described("optimizers", adam.rule) == {
        "kind": "adam",
        "beta1": 0.8,
        "beta2": 0.99,
        "epsilon": 1e-8,
        "decay": "coupled",
    }
    count = fedsim.load(path, overrides=["client.kind=fedzo", "strategy=fedzo", "client.estimator.count=7"]).client
    assert count.made["estimator"].count == 7
    with pytest.raises(InputError, match=r"client\.optimizer\.rho = 0\.9: no such option here"):
        fedsim.load(path, overrides=["client.optimizer.rho=0.9"])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("settings", "part", "expected"),
    [
        (["selection.kind=uniform", "selection.count=4"], "selection", {"kind": "uniform", "count": 4}),
        (["selection.kind=round_robin", "selection.count=4"], "selection", {"kind": "round_robin", "count": 4}),
        (["client.kind=sgd", "client.steps=3"], "client", {"kind": "sgd", "steps": 3}),
        (
            ["client.kind=scaffold", "client.steps=3", "strategy.kind=scaffold"],
            "client",
            {"kind": "scaffold", "steps": 3},
        ),
        (["client.steps=3", "client.lr=0.5"], "client", {"kind": "sgd", "steps": 3, "lr": 0.5}),
        (
            ["client.kind=sgd", "client={kind='fedzo', epochs=2}", "client.lr=0.5"],
            "client",
            {"kind": "sgd", "epochs": 2},
        ),
        (["partition.clients=4", "partition.kind=dirichlet", "partition.alpha=1.0"], "partition", {"clients": 4}),
        (
            ["client.adversarial.attack.epsilon=0.1", "client.adversarial={kind='mart', attack='pgd'}"],
            "client",
            {"epochs": 1},
        ),
    ],
)
def test_settings_may_come_in_any_order(tmp_path, order, settings, part, expected):
    (tmp_path / "bare.toml").write_text("rounds = 3")
    made = fedsim.load(tmp_path / "bare.toml", overrides=settings[::order]).resolved()[part]
    assert {name: made.get(name) for name in expected} == expected
    assert {"count", "fraction"} - made.keys() if part == "selection" else not {"steps", "epochs"} <= made.keys()


def test_an_option_that_was_given_is_not_taken_away_by_another(tmp_path):
    (tmp_path / "x.toml").write_text('[selection]\nkind = "uniform"\nfraction = 0.5\n')
    for order in (1, -1):
        for settings in (["selection.count=4"], ["selection.count=4", "selection.fraction=1.0"]):
            with pytest.raises(InputError, match=r"give it or count \(4\), not both"):
                fedsim.load(tmp_path / "x.toml", overrides=settings[::order])
        with pytest.raises(InputError, match=r"^client\.queries = 3: no such option here"):
            fedsim.load(tmp_path / "x.toml", overrides=["client.queries=3", "client.kind=sgd"][::order])
    left = fedsim.load(tmp_path / "x.toml", overrides=["selection.fraction=none", "selection.count=4"])
    assert left.selection.count == 4


def test_an_experiment_that_is_made_loses_its_defaults_like_a_file():
    made = override(fedsim.experiment(rounds=1).resolved(), ["selection.count=4", "client.steps=3"])
    assert (made["selection"], made["client"]["steps"]) == ({"kind": "uniform", "count": 4}, 3)
    assert "epochs" not in made["client"]


def test_paths_in_a_file_are_from_its_folder(tmp_path, monkeypatch):
    """And stand absolute in config.toml, so that a run goes on wherever that is asked for."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.py").write_text(CELL)
    (tmp_path / "there" / "data.csv").write_text("a,label\n1,0\n2,1\n")
    (tmp_path / "data.csv").write_text("a,label\n1,0\n2,1\n")
    (tmp_path / "other.py").write_text(CELL)
    text = """
        client = { kind = "./mine.py:Mine", epochs = 1 }
        problem = { dataset = { kind = "csv", path = "data.csv", label = "label" }, model = "logistic" }
    """
    (tmp_path / "there" / "x.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    read = fedsim.load("there/x.toml").resolved()
    assert read["client"]["kind"] == f"{tmp_path}/there/mine.py:Mine"
    assert read["problem"]["dataset"]["path"] == f"{tmp_path}/there/data.csv"
    # What is written on the command line is from where that was written.
    read = fedsim.load("there/x.toml", overrides=["client.kind=./other.py:Mine", "problem.dataset.path=data.csv"])
    assert read.resolved()["client"]["kind"] == f"{tmp_path}/other.py:Mine"
    assert read.resolved()["problem"]["dataset"]["path"] == f"{tmp_path}/data.csv"
    # What lies in the data folder alone keeps its name.
    (tmp_path / "there" / "data.csv").rename(tmp_path / "there" / "moved.csv")
    assert fedsim.load("there/x.toml", data_dir="there").resolved()["problem"]["dataset"]["path"].endswith("data.csv")


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"selecton": "uniform"}, "did you mean selection?"),
        ({"selection": {"kind": "unifrom", "count": 3}}, "did you mean uniform?"),
        ({"selection": {"kind": "uniform", "cuont": 3}}, "did you mean count?"),
        ({"engine": {"executor": "stackd"}}, "did you mean stacked?"),
        ({"engine": {"presicion": "float32"}}, "did you mean precision?"),
        ({"strategy": {"kind": "fedavg", "server_optimizer": "adma"}}, "did you mean adam?"),
        ({"strategy": {"kind": "fedavg", "server_optimizer": {"kind": "adam", "beta3": 0.5}}}, "did you mean beta2?"),
        ({"problem": {"dataset": "mnits"}}, "did you mean mnist?"),
        ({"problem": {"loss": "Cross_Entropie"}}, "did you mean cross_entropy?"),
        ({"transforms": [{"kind": "clipp", "max_norm": 1.0}]}, "did you mean clip?"),
    ],
    ids=str,
)
def test_a_word_like_a_known_one_is_answered_with_that(tables, words):
    with pytest.raises(InputError) as caught:
        fedsim.experiment(**tables)
    assert str(caught.value).endswith(words)


def test_patterns_and_test_files_are_from_the_folder_of_the_file(tmp_path, monkeypatch):
    for name in ("a.csv", "b.csv", "tests.txt"):
        (tmp_path / name).write_text("x,y\n1,0\n2,1\n")
    table = '[problem]\nmodel = "logistic"\n[problem.dataset]\nkind = "csv"\nlabel = "y"\n'
    (tmp_path / "e.toml").write_text(f'{table}path = "*.csv"\ntest_path = "tests.txt"\n')
    monkeypatch.chdir(tmp_path.parent)
    made = fedsim.load(tmp_path / "e.toml").problem.made["dataset"]
    assert (made.path, made.test_path) == (str(tmp_path / "*.csv"), str(tmp_path / "tests.txt"))
    assert len(made.load(DataFolder()).x) == 4


@pytest.mark.parametrize(
    ("strategy", "client"),
    [
        ("scaffold", "scaffold"),
        ("fedkseed", "fedkseed"),
        ("cma_es", "values"),
        ("feddyn", "feddyn"),
        ("fzoos", "fzoos"),
    ],
)
def test_a_strategy_names_the_client_that_it_needs(strategy, client):
    with pytest.raises(
        InputError, match=rf"^client\.kind = sgd: with strategy {strategy} .*; take client\.kind = {client}$"
    ):
        fedsim.experiment(strategy=strategy, client={"kind": "sgd", "epochs": 1})


def test_a_new_kind_deep_in_the_file_drops_the_options_that_it_does_not_have(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text(
        '[client]\nkind = "sgd"\nepochs = 1\n[client.adversarial]\nkind = "standard"\nmix = 0.5\n'
        'attack = { kind = "pgd", epsilon = 0.1, steps = 7 }\n'
    )
    made = fedsim.load(path, overrides=["client.adversarial.kind=trades", "client.adversarial.attack.kind=pgd"])
    assert made.client.defence.attacked_by.steps == 7
    made = fedsim.load(path, overrides=["client.adversarial.attack.kind=fgsm"])
    assert (made.client.defence.mix, made.client.defence.attacked_by.label) == (0.5, "fgsm")


@pytest.mark.parametrize("value", [3, [], [{"kind": "standard"}], {"kind": "standard", "attack": 4}])
def test_a_plug_in_is_a_name_or_a_table(value):
    with pytest.raises(InputError, match="write a table with `kind` and options, or a name"):
        fedsim.experiment(client={"kind": "sgd", "epochs": 1, "adversarial": value})


def test_a_new_kind_of_a_devices_table_keeps_only_the_options_that_it_has(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('[devices.compute]\nkind = "lognormal"\nmedian = 2.0\nsigma = 0.5\n')
    made = fedsim.load(file, overrides=["devices.compute.kind=fixed"])
    assert made.resolved()["devices"]["compute"]["kind"] == "fixed"


def test_a_class_without_options_is_refused_under_set_too(tmp_path):
    (tmp_path / "own.py").write_text("class Plain:\n    pass\n")
    (tmp_path / "x.toml").write_text("rounds = 1\n")
    with pytest.raises(InputError, match="put @options above the class"):
        fedsim.load(tmp_path / "x.toml", overrides=[f"strategy.kind={tmp_path / 'own.py'}:Plain"])


def test_a_problem_that_does_not_fit_in_memory_is_one_line(monkeypatch):
    made = fedsim.experiment(rounds=1)

    def full(self, experiment):
        raise MemoryError("Unable to allocate 128. GiB")

    monkeypatch.setattr(type(made.problem), "build", full)
    with pytest.raises(InputError, match="does not fit in this machine's memory"):
        fedsim.run(made, save=False)


def test_whole_numbers_have_64_bits():
    made = fedsim.experiment(client={"kind": "sgd", "epochs": 1, "batch_size": 2**63 - 1})
    assert made.client.batch_size == 2**63 - 1
    for table in ({"batch_size": 2**63}, {"schedule": {"kind": "step", "every": -(2**63) - 1}}):
        with pytest.raises(InputError, match="whole numbers have 64 bits"):
            fedsim.experiment(client={"kind": "sgd", "epochs": 1, **table})


# Objects in the place of tables.


@pytest.mark.parametrize(
    ("objects", "tables"),
    [
        ({"strategy": FedBuff(size=5)}, {"strategy": {"kind": "fedbuff", "size": 5}}),
        ({"client": Sgd(epochs=2, lr=0.5)}, {"client": {"kind": "sgd", "epochs": 2, "lr": 0.5}}),
        (
            {"strategy": Server(), "client": FedZO(estimator=Differences(count=3))},
            {
                "strategy": "fedzo",
                "client": {"kind": "fedzo", "estimator": {"kind": "differences", "count": 3}},
            },
        ),
        ({"aggregation": Median()}, {"aggregation": "median"}),
        (
            {"transforms": [Clip(max_norm=2.0)], "order_transforms": (Clip(max_norm=3.0),)},
            {
                "transforms": [{"kind": "clip", "max_norm": 2.0}],
                "order_transforms": [{"kind": "clip", "max_norm": 3.0}],
            },
        ),
        (
            {"problem": SupervisedOptions(dataset=Digits(test_share=0.5), model=MLP(hidden=(3,)))},
            {"problem": {"dataset": {"kind": "digits", "test_share": 0.5}, "model": {"kind": "mlp", "hidden": [3]}}},
        ),
        (
            {"evaluation": Evaluation(every=2, attacks=(FGSM(epsilon=0.1),))},
            {"evaluation": {"every": 2, "attacks": [{"kind": "fgsm", "epsilon": 0.1}]}},
        ),
        (
            {
                "engine": EngineOptions(precision="float64"),
                "devices": Devices(compute=LogNormal(median=2.0, sigma=0.5)),
            },
            {
                "engine": {"precision": "float64"},
                "devices": {"compute": {"kind": "lognormal", "median": 2.0, "sigma": 0.5}},
            },
        ),
        ({"stopping": Stopping(target=0.9)}, {"stopping": {"target": 0.9}}),
    ],
)
def test_an_object_is_what_its_table_is(objects, tables):
    made, read = fedsim.experiment(**objects), fedsim.experiment(**tables)
    assert made.resolved() == read.resolved()
    assert fedsim.experiment(**made.resolved()).resolved() == made.resolved()


def test_a_table_is_written_with_the_kind_that_it_was_read_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("from clients.sgd import Sgd as Mine\n")
    for kind in ("sgd", f"{tmp_path}/mine.py:Mine", "clients.sgd:Sgd"):
        made = fedsim.experiment(client={"kind": kind, "epochs": 1})
        assert made.resolved()["client"]["kind"] == kind
    assert fedsim.experiment(client=Sgd(epochs=1)).resolved()["client"]["kind"] == "sgd"


@options
class Own(Sgd):
    """Installed nowhere."""

    factor: float = 2.0


def test_the_class_of_an_object_need_not_be_installed(tmp_path, monkeypatch):
    made = fedsim.experiment(client=Own(epochs=1, factor=3.0))
    assert made.resolved()["client"]["kind"] == f"{__name__}:Own"
    again = fedsim.experiment(**made.resolved())
    assert again.resolved() == made.resolved()
    assert type(again.client) is Own
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CELL)
    read = fedsim.experiment(client={"kind": "./mine.py:Mine", "epochs": 1}).client
    again = fedsim.experiment(client=type(read)(epochs=2)).resolved()["client"]
    assert again["kind"] == f"{tmp_path / 'mine.py'}:Mine"


CELL = """
from clients.sgd import Sgd
from fedsim.core.options import options


@options
class Mine(Sgd):
    pass
"""


def in_a_cell(monkeypatch: pytest.MonkeyPatch) -> Sgd:
    """An object of a class that a notebook's cell has defined."""
    cell = dict[str, object](__name__="__main__")
    exec(CELL, cell)  # as a kernel does it
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "Mine", cell["Mine"], raising=False)
    monkeypatch.delattr(main, "__file__", raising=False)
    made = cell["Mine"](epochs=1)  # type: ignore[operator]
    assert isinstance(made, Sgd)
    return made


def test_a_class_of_a_cell_runs_goes_on_and_is_said_to_be_one(tmp_path, monkeypatch):
    mine = in_a_cell(monkeypatch)
    kept = {"rounds": 2, "checkpoint": {"every": 1}}

    def interrupted(_: fedsim.Round) -> None:
        raise KeyboardInterrupt

    made = fedsim.experiment(client=mine, **kept)
    plain = fedsim.run(fedsim.experiment(client={"kind": "sgd", "epochs": 1}, **kept), save=False)
    for folder in ("here", "elsewhere"):
        fedsim.run(made, out=tmp_path / folder, callbacks=[interrupted])
    assert 'kind = "__main__:Mine"' in (tmp_path / "here" / "config.toml").read_text()
    assert fedsim.resume(tmp_path / "here").params.tolist() == plain.params.tolist()
    monkeypatch.delattr(sys.modules["__main__"], "Mine")
    with pytest.raises(InputError, match=r"client.kind = __main__:Mine: __main__ has no Mine; it was defined"):
        fedsim.resume(tmp_path / "elsewhere")


def test_a_class_that_processes_do_not_find_is_refused(monkeypatch):
    @options
    class Within(Sgd):
        """Within a function."""

    in_processes = {"rounds": 1, "engine": {"executor": "process", "workers": 1}}
    for client, kind in ((in_a_cell(monkeypatch), "__main__:Mine"), (Within(epochs=1), r".*<locals>.Within")):
        with pytest.raises(InputError, match=rf"^client.kind = {kind}: other processes do not find this class"):
            fedsim.run(fedsim.experiment(client=client, **in_processes), save=False)


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"client": Sgd}, "client = Sgd: hand over an object, made with its options"),
        ({"client": FedBuff()}, "client = FedBuff: it has no [a-z, ]*cost, which all clients have"),
        ({"strategy": Sgd(epochs=1)}, "strategy = Sgd: it has no [a-z, ]*ask, tell"),
        ({"transforms": Clip(max_norm=1.0)}, "write each as a"),
        ({"transforms": [Clip(max_norm=1.0), Median()]}, "transforms.1 = Median: it has no vectors"),
        ({"evaluation": EngineOptions()}, "evaluation = EngineOptions.*: is a table; write its options under it"),
        ({"client": object()}, "or hand over a plug-in"),
    ],
)
def test_objects_of_the_wrong_kind_are_refused(tables, line):
    with pytest.raises(InputError, match=line):
        fedsim.experiment(**tables)


@pytest.mark.parametrize("kind", ["fedproto", "ifca", "local"])
def test_a_client_that_a_strategy_is_called_after_is_told_of_it(kind):
    client = {"kind": kind, "epochs": 1}
    with pytest.raises(
        InputError, match=rf"^client\.kind = {kind}: with strategy fedavg .*, or strategy\.kind = {kind}$"
    ):
        fedsim.experiment(strategy="fedavg", client=client)
    assert fedsim.experiment(strategy=kind, client=client).client is not None
