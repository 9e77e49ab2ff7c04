"""Every method has a page that says its rule in formulas, and how it is used."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedsim.cli import reference
from fedsim.core.plugins import make
from website import maths, methods
from website.usage import uses

RULED = ("strategies", "clients", "estimators", "aggregators", "attacks", "defences")
"""Groups of methods whose rule is a formula."""
SLOW = {("attacks", "autoattack")}
"""What imports a library that takes seconds."""
ALL = methods.methods()


@pytest.mark.parametrize("group", RULED)
def test_every_rule_is_a_formula(group: str) -> None:
    without = [method.kind for method in ALL if method.group == group and not methods.formulas(method)]
    assert without == []


@pytest.mark.parametrize("group", RULED)
def test_no_sign_of_a_formula_is_left_in_the_text(group: str) -> None:
    left = [
        (method.kind, text)
        for method in ALL
        if method.group == group
        for paragraph in reference.describe(method.made).rule
        for line in paragraph
        for text in [" ".join(piece.text for piece in maths.pieces(line, method.options) if not piece.mathml)]
        if reference.FORMULA.search(maths.CODE.sub("", text))
    ]
    assert left == []


def test_a_page_has_rule_use_options_source_and_code() -> None:
    text = "\n".join(methods.page(methods.Method("strategies", "fedfix")))
    for wanted in (
        "<mi>θ</mi>",
        '[strategy]\nkind = "fedfix"\n',
        "fedsim run experiments/digits_fedfix.toml",
        "`experiments/fedfix/fedfix_05.toml`",
        "[Virtual time](../../virtual_time.md)",
        "| `window` |",
        "## Source",
        "`FedFix` in `strategies/fedfix.py`",
    ):
        assert wanted in text


def test_uses_are_found_wherever_a_table_names_a_method() -> None:
    found = uses()
    assert found["strategies", "fedfix"][0].place == "strategy"
    assert "client.adversarial" in {use.place for key, many in found.items() if key[0] == "defences" for use in many}
    assert "client.adversarial.attack" in {use.place for use in found["attacks", "pgd"]}
    assert Path("experiments/digits_fedavg.toml") in {use.page for use in found["clients", "sgd"]}


@pytest.mark.parametrize(
    ("place", "value", "wanted"),
    [
        ("strategy", "fedavg", {"strategy": "fedavg"}),
        ("transforms", {"kind": "clip"}, {"transforms": [{"kind": "clip"}]}),
        ("problem.dataset", "digits", {"problem": {"dataset": "digits"}}),
        ("client.estimator", {"kind": "spsa"}, {"client": {"estimator": {"kind": "spsa"}}}),
    ],
)
def test_an_example_is_a_table_of_an_experiment_file(place: str, value: object, wanted: object) -> None:
    assert tomllib.loads(methods.example(place, value)) == wanted


@pytest.mark.parametrize(("group", "kind"), [key for key in methods.EXAMPLES if key not in SLOW])
def test_an_example_of_our_own_can_be_made(group: str, kind: str) -> None:
    _, value = methods.first_use(methods.Method(group, kind))
    make(group, value, kind)


def test_examples_are_of_methods_that_are_used_nowhere() -> None:
    assert [key for key in methods.EXAMPLES if key in uses()] == []


def test_what_must_be_given_is_in_an_example() -> None:
    lacking = [
        f"{method.group} {method.kind} {option.name}"
        for method in ALL
        if (method.group, method.kind) not in uses()
        for option in reference.options_of(method.made)
        if option.default is None and option.name not in methods.EXAMPLES.get((method.group, method.kind), {})
    ]
    assert lacking == []
