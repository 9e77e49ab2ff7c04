"""`conformance` as an author uses it: in a test file beside a plug-in of one's own, in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import forks
import pytest

from fedsim.core.errors import InputError
from fedsim.server.selection.power_of_choice import PowerOfChoice
from fedsim.server.selection.uniform import Uniform
from fedsim.testing import checks, conformance
from fedsim.testing.subject import table_of
from strategies.fedavg import FedAvg

STRATEGY = '''
"""theta <- theta + eta mean_i sign(Delta_i) |Delta_i|^power."""

from typing import ClassVar, Literal

from fedsim.server import Averaging, PositiveFloat, options


@options
class SignedPower(Averaging):
    """power: of the magnitudes. rounding: as it is, or halves."""

    power: PositiveFloat = 0.5
    rounding: Literal["none", "halves"] = "none"

    def change(self, state, replies):
        rows = replies.payload["delta"]
        rows = rows.sign() * rows.abs() ** self.power
        if self.rounding == "halves":
            rows = (2 * rows).round() / 2
        return replies.combine(replies.weights(self.weighting), rows=rows)
'''
CLIENT = '''
"""SGD whose change is damped."""

from dataclasses import replace

from clients.sgd import Sgd
from fedsim.client import Fraction, options


@options
class Damped(Sgd):
    """damping: what is taken away of the change."""

    damping: Fraction = 0.25

    def train(self, cohort):
        update = super().train(cohort)
        return replace(update, payload={**update.payload, "delta": (1.0 - self.damping) * update.payload["delta"]})
'''
TESTS = """
from fedsim.testing import conformance

from mine.damped import Damped
from mine.signed import SignedPower

TestSignedPower = conformance(SignedPower(server_lr=0.05))
TestDamped = conformance(Damped(epochs=1, batch_size=4), others={"damping": 0.75})
"""


OPTIONS = ("-P", "-m", "pytest", "-p", "no:cacheprovider", "-Werror", "--strict-markers")


def pytest_of(folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit status of a pytest in a folder, and what it prints."""
    done = forks.python(*OPTIONS, *arguments, cwd=folder)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a package of two plug-ins, which nobody has installed, and their tests."""
    (tmp_path / "mine").mkdir()
    for name, text in {"__init__.py": "", "signed.py": STRATEGY, "damped.py": CLIENT}.items():
        (tmp_path / "mine" / name).write_text(text)
    (tmp_path / "test_mine.py").write_text(TESTS)
    return tmp_path


def test_plug_ins_of_ones_own_pass_everything(package):
    """Each check once for each, each option once, and Ray is not asked for."""
    status, said = pytest_of(package, "-q")
    assert status == 0, said
    # SignedPower has its two options and five of the plain round; Damped has 17 of Sgd's and its own.
    assert f"{2 * len(checks.CHECKS) + 7 + 18} passed, 2 skipped" in said, said


def test_a_failure_names_the_option_and_shows_the_numbers(package):
    (package / "mine" / "signed.py").write_text(STRATEGY.replace("** self.power", "** 0.5"))
    status, said = pytest_of(package, "-q", "-k", "TestSignedPower and (option or cohort)")
    assert status == 1, said
    assert "FAILED test_mine.py::TestSignedPower::test_every_option_moves_something[power]" in said
    assert "strategy.power = 0.5: no other value was found that changes the run; name one in `others`" in said
    assert "1 failed" in said


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ray_comes_to_the_same_where_it_is_asked_for(package):
    """Its processes find the package where the tests do."""
    pytest.importorskip("ray")
    status, said = pytest_of(package, "-q", "-m", "ray", "-k", "TestDamped")
    assert status == 0, said
    assert "1 passed" in said, said


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_a_plug_in_may_stand_in_its_test_file(tmp_path, mode):
    """Which is a module of no package, and under importlib not even on the path: it is then named by its file."""
    text = STRATEGY + "from fedsim.testing import conformance\nTestIt = conformance(SignedPower(server_lr=0.05))\n"
    (tmp_path / "test_it.py").write_text(text)
    status, said = pytest_of(tmp_path, "-q", f"--import-mode={mode}", "-k", "toml or server_lr or cohort_of")
    assert status == 0, said
    assert "3 passed" in said


def test_pytest_starts_without_pytorch_and_flower(tmp_path):
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n"
        "def test_nothing(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.has_plugin('fedsim')\n"
        "    assert not {'torch', 'flwr', 'ray', 'numpy', 'pydantic'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, *OPTIONS, "-q"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_experiment_has_both_of_its_plug_ins_tested():
    made = conformance({"strategy": {"kind": "fedprox", "proximal_mu": 0.5}, "rounds": 2})
    (mark,) = made.test_every_option_moves_something.pytestmark
    assert mark.args[1] == [
        "strategy.server_lr",
        "strategy.server_optimizer",
        "strategy.server_weight_decay",
        "strategy.weighting",
        "strategy.proximal_mu",
    ]
    made().test_every_option_moves_something("strategy.proximal_mu")
    made().test_a_cohort_of_one()


def test_clients_that_ask_for_values_are_held_to_it_on_functions_too():
    made = conformance({"client": {"kind": "fedzo", "steps": 2}}, strategy="fedzo")
    on_functions = {f"test_{check.__name__}_on_functions" for check in checks.ON_FUNCTIONS}
    assert on_functions <= set(vars(made))
    made().test_queries_are_what_was_asked_on_functions()
    assert not on_functions & set(vars(conformance(FedAvg())))


def test_options_of_the_other_kinds_have_checks_of_their_own():
    made = conformance({"client": {"kind": "scaffold", "epochs": 1}}, strategy="scaffold", refused=["client.clip_norm"])
    moving, refused = (getattr(made, name).pytestmark[0].args[1] for name in (
        "test_every_option_moves_something", "test_an_option_that_is_refused"
    ))  # fmt: skip
    assert refused == ["client.clip_norm"]
    assert "client.clip_norm" not in moving
    made().test_an_option_that_is_refused("client.clip_norm")
    with pytest.raises(AssertionError, match=r"client\.lr = 0\.05 is not refused"):
        conformance(
            {"client": {"kind": "scaffold", "epochs": 1}}, strategy="scaffold", refused=["client.lr"]
        )().test_an_option_that_is_refused("client.lr")


def local():
    @fedsim_options
    class Local(FedAvg):
        pass

    return Local()


def fedsim_options(cls):
    from fedsim.core.options import options

    return options(cls)


class Bare(FedAvg):
    """Without options of its own above it."""


@pytest.mark.parametrize(
    ("plugin", "named", "words"),
    [
        (FedAvg, {}, r"plugin = FedAvg: hand over an object"),
        (Bare(), {}, r"plugin = Bare: .* put @options above the class"),
        (local(), {}, r"plugin = local\.<locals>\.Local: no experiment can name a class within another"),
        ({"rounds": 3}, {}, r"plugin = rounds: name a strategy or a client"),
        (FedAvg(), {"strategy": "fedavg"}, r"strategy = fedavg: the plug-in is a strategy already"),
        (FedAvg(), {"others": {"lr": 1.0}}, r"others = lr: no such option here; name one of: server_lr"),
        (FedAvg(), {"refused": ["lr"]}, r"refused = lr: no such option"),
    ],
)
def test_what_cannot_be_tested_is_one_line(plugin, named, words):
    with pytest.raises(InputError, match=f"^{words}"):
        conformance(plugin, **named)


def test_a_class_of_a_script_is_one_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        STRATEGY + "from fedsim.testing import conformance\n"
        "try:\n    conformance(SignedPower())\nexcept ValueError as error:\n    print(error)\n"
    )
    done = forks.python(script)
    assert done.stdout.startswith("plugin = SignedPower: no experiment can name a class within a script")


def test_what_no_kit_is_for_is_one_line():
    from fedsim.devices.compute import Fixed

    with pytest.raises(
        InputError, match=r"^plugin = Fixed: it has no kit: make it a subclass of one of fedsim\.server\.Strategy, "
    ):
        conformance(Fixed())


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"strategy": "fedbuff"}, r"strategy = fedbuff: is no setting for selectors"),
        ({"folder": Path("data")}, r"folder = data: is no setting for selectors"),
        ({"others": {"lr": 1.0}}, r"others = lr: no such option here; name one of: count, fraction"),
        ({"refused": ["lr"]}, r"refused = lr: no such option"),
    ],
)
def test_what_is_no_setting_of_a_kind_is_one_line(named, words):
    with pytest.raises(InputError, match=f"^{words}"):
        conformance(Uniform(count=4), **named)
    with pytest.raises(InputError, match=r"^folder = data: only a data set is read from one"):
        conformance(FedAvg(), folder=Path("data"))


def test_a_data_set_whose_files_are_not_there_is_skipped(monkeypatch, tmp_path):
    from fedsim.problems.datasets.femnist import FEMNIST

    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"femnist_subset.npz was looked for at "):
        conformance(FEMNIST())().test_its_arrays_fit_each_other()
    with pytest.raises(InputError, match=r"femnist_subset.npz was looked for at "):
        conformance(FEMNIST(), folder=tmp_path)().test_its_arrays_fit_each_other()


def test_an_option_that_a_selector_refuses():
    made = conformance(PowerOfChoice(count=2, pool=4, loss="last"), refused=["score_examples"])
    assert "score_examples" not in made.test_every_option_moves_something.pytestmark[0].args[1]
    made().test_an_option_that_is_refused("score_examples")
    with pytest.raises(AssertionError, match=r"pool = 5 is not refused"):
        conformance(PowerOfChoice(count=2, pool=4), refused=["pool"])().test_an_option_that_is_refused("pool")


def test_an_object_is_the_table_that_makes_it():
    made = FedAvg(server_lr=0.5, server_optimizer={"kind": "adam", "beta1": 0.5})
    table = table_of("strategies", made)
    assert (table["kind"], table["server_lr"], table["server_optimizer"]["beta1"]) == ("fedavg", 0.5, 0.5)
    assert "deadline" not in table
