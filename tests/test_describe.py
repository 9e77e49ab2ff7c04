"""What `fedsim describe` says: the rule, options with types, ranges, defaults and units, and the source."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from fedsim import registry
from fedsim.cli import app
from fedsim.commands.describe import GROUPS, WIDTH
from fedsim.errors import InputError
from fedsim.options import BatchSize, Counts, Seconds, one_of, options, table_of
from fedsim.parts import Parts
from fedsim.reference import Option, describe


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


@options
class Base(Parts):
    """What is shared. pace, wait: of the base. Nothing else."""

    parts = {"model": "models"}  # noqa: RUF012

    pace: Literal["calm", "brisk"] = "calm"
    wait: Seconds | None = None
    model: Any = "mlp"


@options
class Everything(Base):
    """x <- x + 1,  y = x
    Costs nothing. Nobody et al. 1999, algorithm 2. And `more` of it.

    batch: examples; hidden: not an option. sizes, or flag: shared words. Source: Somebody and Others 2001.

    pace: here, too.

    A paragraph of its own.
    """

    batch: BatchSize
    sizes: Counts = (3, 4)
    flag: bool = False
    share: Annotated[int, Field(ge=2, le=9)] = 2
    speed: Annotated[Quick | Slow, one_of(quick=Quick, slow=Slow)] = Quick()
    inner: Annotated[Inner | None, table_of(Inner)] = None


def test_a_class_in_words():
    found = describe(Everything)
    assert found.rule == (
        ("x <- x + 1,  y = x", "Costs nothing. And `more` of it."),
        ("A paragraph of its own.",),
    )
    assert found.sources == ("Nobody et al. 1999, algorithm 2.", "Somebody and Others 2001.")
    assert {option.name: option for option in found.options} == {
        option.name: option
        for option in (
            Option("pace", '"calm"', '"calm" or "brisk"', (), "of the base. Nothing else. here, too."),
            Option("wait", "", "seconds", (), "of the base. Nothing else."),
            Option("model", '"mlp"', "one of the models, a name or a table with kind", (), ""),
            Option("batch", None, 'whole number, at least 1 or "full"', (), "examples; hidden: not an option."),
            Option("sizes", "[3, 4]", "a list: whole number, at least 1", (), "shared words."),
            Option("flag", "false", "true or false", (), "shared words."),
            Option("share", "2", "whole number, at least 2, at most 9", (), ""),
            Option(
                "speed",
                '"quick"',
                "quick or slow, a name or a table with kind",
                ("quick: amount = 0.5", "slow: no options"),
                "",
            ),
            Option("inner", "", "a table", (), ""),
        )
    }


@pytest.mark.parametrize("group", registry.GROUPS)
def test_every_installed_plug_in_is_described_within_80_columns(group):
    singular = {plural: one for one, plural in GROUPS.items()}[group]
    for name in registry.names(group):
        page = told(singular, name)
        code = page.index("\nCode\n")
        assert max(map(len, page[:code].splitlines())) <= WIDTH
        assert page.startswith(f"{singular} {name}\n\n  ")
        # Every option is there, with its default.
        for option in describe(registry.find(group, name, "kind")).options:
            assert f"\n  {option.name} " in page
            assert option.values


def test_a_page():
    page = told("strategy", "fedfix")
    for words in (
        "strategy fedfix\n\n  FedFix: the server steps at fixed times",
        "\n  unbiased: d_i = p_i c_i, c_i = ceil(tau_i / window);  identical",
        "\n  window = 0.5\n      seconds\n      virtual seconds between two steps.\n",
        '\n  weights = "unbiased"\n      "unbiased" or "identical"\n      unbiased, or the same for all.\n',
        "\n  server_lr = 1.0\n      number, above 0\n      eta.\n",
        "\nSource\n  Fraboni et al. 2023, sections 2 and 5.\n",
        "\nCode\n  strategies.fedfix:FedFix of fedsim ",
        "strategies/fedfix.py\n",
    ):
        assert words in page


def test_a_file_and_a_module_are_described_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        '"""Mine: a rule."""\nfrom fedsim.options import options\n\n\n@options\nclass Mine:\n    size: int = 3\n'
    )
    page = told("partition", "./mine.py:Mine")
    assert page.startswith("partition ./mine.py:Mine\n\n  Mine: a rule.\n\nOptions\n  size = 3\n      whole number\n")
    assert f"Code\n  Mine\n  {tmp_path / 'mine.py'}\n" in page
    assert told("strategies", "strategies.fedavg:FedAvg").replace("\n", " ").count("McMahan et al. 2017") == 1


def test_a_group_is_listed_with_first_sentences():
    listed = told("selector")
    assert listed.startswith("curriculum\n    Client curriculum: first the clients whose examples the model finds easy")
    assert "\nuniform\n    Uniform selection: every free client is equally likely, without replacement.\n" in listed
    assert len([line for line in listed.splitlines() if not line.startswith(" ")]) == len(registry.names("selectors"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["thing"], "group = thing: name one of: strategy, client, "),
        (["strategy", "nothing"], "kind = nothing: not one of the installed strategies"),
        (["strategy", "fedsim.clock:Any"], "kind = fedsim.clock:Any: fedsim.clock has no Any"),
        (["strategy", "fedsim.devices.fleet:Fleet"], "kind = fedsim.devices.fleet:Fleet: its options cannot be read"),
    ],
)
def test_what_cannot_be_described_is_one_line(arguments, line):
    with pytest.raises(InputError) as caught:
        told(*arguments)
    assert str(caught.value).startswith(line)


def test_groups_are_those_of_the_registry():
    assert list(GROUPS.values()) == list(registry.GROUPS)
