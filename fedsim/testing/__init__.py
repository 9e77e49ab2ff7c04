"""The conformance kit: what every strategy and every client keeps to, as tests for yours.

In a test file beside a plug-in, one line brings them all:

    from fedsim.testing import conformance
    from my_package.strategies import MyStrategy

    TestMyStrategy = conformance(MyStrategy(server_lr=0.5))

The plug-in is paired with `fedavg` or `sgd`, or with `client=` or `strategy=`, and run on `small_problem`; where its
clients ask for values only, also on `small_functions`. It need not be installed: experiments name it by its module or
file. Each promise is a test of its own:

- what a strategy is handed stays as it was; replies in any order give the same bytes; so do clients in any order;
- one by one, stacked, and in cohorts of any size on any cores, clients come to the same;
- an interrupted run ends like an uninterrupted one; the same seed gives the same bytes, whatever the generators of the
  process are, and another seed others;
- options survive TOML, and each of them moves something. Other values are found by an option's type; where none of
  them changes the run the test fails and names the option, and `others={"option": value}` is for you to say;
- a window of nobody, a cohort of one, a client that fails, a late reply, updates that are NaN or infinite and metrics
  that are NaN leave what they should;
- the bytes that are counted are those of the payloads, and the questions those that were asked;
- with `pytest --fedsim-ray`, or `-m ray`, and the extra `ray`: Flower's own engine comes to the same.

Beside these an author wants a test of the rule itself, at best against a closed form: see `Quadratics`. `simulate` runs
a plug-in on a small problem; `blobs`, `mlp`, `small_problem`, `small_functions` and `small_experiment` are what it is
made of. `fedsim.testing.checks` has the checks one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.core.lazy import lazily

if TYPE_CHECKING:
    from fedsim.testing.problems import (
        Quadratics,
        blobs,
        mlp,
        small_experiment,
        small_functions,
        small_problem,
        small_quadratics,
    )
    from fedsim.testing.subject import Subject, simulate
    from fedsim.testing.suite import conformance

# Loaded when first asked for: pytest loads this package wherever fedsim is installed.
_HOMES = {
    "Quadratics": "fedsim.testing.problems",
    "Subject": "fedsim.testing.subject",
    "blobs": "fedsim.testing.problems",
    "conformance": "fedsim.testing.suite",
    "mlp": "fedsim.testing.problems",
    "simulate": "fedsim.testing.subject",
    "small_experiment": "fedsim.testing.problems",
    "small_functions": "fedsim.testing.problems",
    "small_problem": "fedsim.testing.problems",
    "small_quadratics": "fedsim.testing.problems",
}

__all__ = [
    "Quadratics",
    "Subject",
    "blobs",
    "conformance",
    "mlp",
    "simulate",
    "small_experiment",
    "small_functions",
    "small_problem",
    "small_quadratics",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
