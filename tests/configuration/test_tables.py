"""Experiment files: overrides, defaults, schedules, and the pair of strategy and client."""

from __future__ import annotations

import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.schedules import Constant, Cosine, Exponential, Linear, Step


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
