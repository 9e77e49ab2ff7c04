"""What `fedsim describe` says: the rule, options with types, ranges, defaults and units, and the source."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from fedsim.attacks.gradient import PGD
from fedsim.cli.describe import GROUPS, WIDTH
from fedsim.cli.main import app
from fedsim.cli.places import gather
from fedsim.cli.reference import Option, describe
from fedsim.client.curriculum import Expert
from fedsim.configuration.tables import Top
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.options import BatchSize, Counts, Seconds, one_of, options, table_of, texts
from fedsim.core.plugins import HasPlugins
from fedsim.core.schedules import Cosine
from fedsim.devices.faults import Late
from fedsim.engine.options import EngineOptions
from fedsim.exchange.transforms import Clip
from strategies.fedavg import FedAvg


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["describe", *arguments])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


@options
class Quick:
    """Little."""

    amount: Annotated[float, Field(gt=0, lt=1)] = 0.5


@options
class Slow:
    """Much."""


@options
class Inner:
    """Within."""

    depth: int = 1


@options
class Base(HasPlugins):
    """What is shared. Nothing else."""

    parts = {"model": "models"}  # noqa: RUF012

    pace: Literal["calm", "brisk"] = "calm"
    """Of the base."""
    wait: Seconds | None = None
    """How long,
    in seconds.
    """
    model: Any = "mlp"


@options
class Everything(Base):
    """x <- x + 1,  y = x
    Costs nothing. Nobody et al. 1999, algorithm 2. And `more` of it. Source: Somebody and Others 2001.

    wait: not a text of an option any more.
    """

    batch: BatchSize
    """Examples."""
    sizes: Counts = (3, 4)
    flag: bool = False
    share: Annotated[int, Field(ge=2, le=9)] = 2
    pace: Literal["calm", "brisk"] = "brisk"
    speed: Annotated[Quick | Slow, one_of(quick=Quick, slow=Slow)] = Quick()
    """How fast."""
    inner: Annotated[Inner | None, table_of(Inner)] = None
    # A comment may stand between an option and its text.
    """A table."""
    often: Annotated[Quick | Slow, one_of(quick=Quick, slow=Slow)] = Quick(amount=0.25)
    ways: ClassVar[int] = 2
    """No option."""
    wait: Seconds | None = None
    """Another meaning, in seconds."""


def test_a_class_in_words():
    found = describe(Everything)
    assert found.rule == (
        ("x <- x + 1,  y = x", "Costs nothing. And `more` of it."),
        ("wait: not a text of an option any more.",),
    )
    assert found.sources == ("Nobody et al. 1999, algorithm 2.", "Somebody and Others 2001.")
    kinds = ("quick: amount = 0.5", "slow: no options")
    named = "quick or slow, a name or a table with kind"
    assert {option.name: option for option in found.options} == {
        option.name: option
        for option in (
            # Declared anew for another default, it still means what the base says.
            Option("pace", '"brisk"', '"calm" or "brisk"', (), "Of the base."),
            Option("wait", "", "seconds", (), "Another meaning, in seconds."),
            Option("model", '"mlp"', "one of the models, a name or a table with kind", (), ""),
            Option("batch", None, 'whole number, at least 1 or "full"', (), "Examples."),
            Option("sizes", "[3, 4]", "a list: whole number, at least 1", (), ""),
            Option("flag", "false", "true or false", (), ""),
            Option("share", "2", "whole number, at least 2, at most 9", (), ""),
            Option("speed", '"quick"', named, kinds, "How fast."),
            Option("inner", "", "a table: depth = 1", (), "A table."),
            Option("often", '{ kind = "quick", amount = 0.25 }', named, kinds, ""),
        )
    }


def test_a_class_without_source_says_nothing(monkeypatch):
    """As one of a notebook's cell; those that it inherits from still speak."""
    cell = ModuleType("cell")
    monkeypatch.setitem(sys.modules, "cell", cell)
    vars(cell).update(Base=Base, options=options)
    exec('@options\nclass Cell(Base):\n    size: int = 1\n    """Lost."""\n', vars(cell))
    assert texts(cell.Cell) == {"pace": "Of the base.", "wait": "How long, in seconds.", "model": "", "size": ""}


def test_a_class_within_a_function_speaks():
    @options
    class Local:
        size: int = 1
        """Begins here,
and goes on at the left."""

    assert texts(Local) == {"size": "Begins here, and goes on at the left."}


def test_every_option_of_every_plug_in_and_table_has_a_text():
    places = gather().values()
    classes = {made for place in places for made in place.kinds.values()}
    assert len(classes) > 130
    said = [(made, name, text) for made in classes for name, text in texts(made).items()]
    assert [(made, name) for made, name, text in said if not text] == []
    assert [text for _, _, text in said if not text.endswith(".")] == []


def test_places_are_those_of_a_file():
    tables = {table: place.kinds for place in gather().values() for table in place.tables}
    for table, kind, made in (
        ("experiment", "", Top),
        ("engine", "", EngineOptions),
        ("strategy", "fedavg", FedAvg),
        ("order_transforms", "clip", Clip),
        ("client.adversarial.attack", "pgd", PGD),
        ("evaluation.attacks", "pgd", PGD),
        ("client.epochs_schedule", "cosine", Cosine),
        ("partition.expert", "", Expert),
        ("faults.late", "", Late),
    ):
        assert tables[table][kind] is made


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_every_installed_plug_in_is_described_within_80_columns(group):
    singular = {plural: one for one, plural in GROUPS.items()}[group]
    for name in plugins.names(group):
        page = told(singular, name)
        code = page.index("\nCode\n")
        assert max(map(len, page[:code].splitlines())) <= WIDTH
        assert page.startswith(f"{singular} {name}\n\n  ")
        # Every option is there, with its default.
        for option in describe(plugins.find(group, name, "kind")).options:
            assert f"\n  {option.name} " in page
            assert option.values


def test_a_page():
    page = told("strategy", "fedfix")
    for words in (
        "strategy fedfix\n\n  FedFix: the server steps at fixed times",
        "\n  unbiased: d_i = p_i c_i, c_i = ceil(tau_i / window);  identical",
        "\n  window = 0.5\n      seconds\n      Virtual seconds between two steps.\n",
        '\n  weights = "unbiased"\n      "unbiased" or "identical"\n      d_i such that clients count as in',
        "\n  server_lr = 1.0\n      number, above 0, at most 1e+30\n      eta, the server's learning rate.\n",
        "\nSource\n  Fraboni et al. 2023, sections 2 and 5.\n",
        "\nCode\n  strategies.fedfix:FedFix of fedsim-lab ",
        "strategies/fedfix.py\n",
    ):
        assert words in page


def test_a_file_and_a_module_are_described_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        '"""Mine: a rule."""\nfrom fedsim.core.options import options\n\n\n@options\nclass Mine:\n    size: int = 3\n'
        '    """How many."""\n    other: int = 4\n\n    def split(self, data, seed): ...\n'
    )
    page = told("partition", "./mine.py:Mine")
    assert page.startswith(
        "partition ./mine.py:Mine\n\n  Mine: a rule.\n\nOptions\n"
        "  size = 3\n      whole number\n      How many.\n  other = 4\n      whole number\n      (no text)\n"
    )
    assert f"Code\n  Mine\n  {tmp_path / 'mine.py'}\n" in page
    assert told("strategies", "strategies.fedavg:FedAvg").replace("\n", " ").count("McMahan et al. 2017") == 1


def test_a_short_name_of_a_measure_is_described_as_what_it_stands_for():
    heading, _, page = told("measure", "f1_macro").partition("\n")
    assert heading == 'measure f1_macro, which is { kind = "f1", average = "macro" }'
    assert page == told("measure", "f1").partition("\n")[2]
    assert told("measure", "top_5_accuracy").startswith(
        'measure top_5_accuracy, which is { kind = "top_k_accuracy", k = 5 }\n'
    )


def test_tables_are_described():
    engine = told("engine")
    assert engine.startswith(
        "engine\n\n  How a run is computed: the table `engine` of an experiment.\n\n  On what device,"
    )
    assert "\n\nOptions\n  executor = " in engine
    assert "\n  rounds (not given)\n      whole number, at least 1\n      Where the run ends. Not given:" in told(
        "experiment"
    )
    assert "\n  up (must be given)\n      number, above 0\n      Bytes a second from a client, the median.\n" in told(
        "devices.bandwidth"
    )
    assert "\n      number, at least 0, at most 1 or a table: rate, share = 1.0, clients,\n      seconds = " in told(
        "faults"
    )
    assert told("client.schedule").startswith("constant\n    1.\nexponential\n    gamma^r.\n")
    assert told("client.schedule", "cosine").startswith("client.schedule cosine\n\n  end + (1 - end)")
    assert told("evaluation.attacks") == told("attack")
    assert told("selection", "uniform") == told("selector", "uniform").replace("selector", "selection")


def test_a_group_is_listed_with_first_sentences():
    listed = told("selector")
    assert listed.startswith("curriculum\n    Client curriculum: first the clients whose examples the model finds easy")
    assert "\nuniform\n    Uniform selection: every free client is equally likely, without replacement.\n" in listed
    assert len([line for line in listed.splitlines() if not line.startswith(" ")]) == len(plugins.names("selectors"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fedavg"], "group = fedavg: is a kind of strategy; name the group before it: strategy fedavg"),
        (["thing"], "group = thing: name one of: strategy, client, "),
        (["strategy", "nothing"], "kind = nothing: not one of the installed strategies"),
        (["strategy", "fedsim.core.clock:Any"], "kind = fedsim.core.clock:Any: fedsim.core.clock has no Any"),
        (
            ["strategy", "clients.sgd:Sgd"],
            "kind = clients.sgd:Sgd: it has no down, init, ask, tell, which all ",
        ),
        (["strategy", "fedsim.devices.fleet:Fleet"], "kind = fedsim.devices.fleet:Fleet: its options cannot be read"),
        (["engine", "x"], "kind = x: engine is a table without kinds; leave it out"),
        (["client.schedule", "x"], "kind = x: name one of: constant, exponential, step, cosine, cosine_power, "),
        (["client.nothing"], "group = client.nothing: name one of: strategy, client, "),
    ],
)
def test_what_cannot_be_described_is_one_line(arguments, line):
    with pytest.raises(InputError) as caught:
        told(*arguments)
    assert str(caught.value).startswith(line)


def test_groups_are_those_of_the_registry():
    assert list(GROUPS.values()) == list(plugins.GROUPS)
