"""The conformance kits: what every plug-in of a kind keeps to, as tests for yours.

In a test file beside a plug-in, one line brings them all:

    from fedsim.testing import conformance
    from my_package.strategies import MyStrategy

    TestMyStrategy = conformance(MyStrategy(server_lr=0.5))

There is a kit for strategies, clients, optimizers, selectors, aggregators, transforms, data sets, losses, measures,
models and trackers; which one it is follows from what is handed over. The plug-in need not be installed: experiments
name it by its module or file. Each promise is a test of its own.

Of every kind: the same seed gives the same bytes, whatever the generators of the process are, and these are left as
they were; what is handed over stays as it was; options survive TOML, and each of them moves something. Other values
are found by an option's type; where none of them changes anything the test fails and names the option, and
`others={"option": value}` is for you to say.

Of strategies and clients, which are paired with `fedavg` or `sgd`, or with `client=` or `strategy=`, and run on
`small_problem`; where clients ask for values only, also on `small_functions`:

- replies in any order give the same bytes; so do clients in any order;
- one by one, stacked, compiled, and in cohorts of any size on any cores, clients come to the same;
- an interrupted run ends like an uninterrupted one, and another seed gives other bytes;
- a window of nobody, a cohort of one, a client that fails, a late reply, updates that are NaN or infinite and metrics
  that are NaN leave what they should;
- clients may come later, or tell later how many examples they have;
- the bytes that are counted are those of the payloads, and the questions those that were asked;
- with `pytest --fedsim-ray`, or `-m ray`, and the extra `ray`: Flower's own engine comes to the same.

Of optimizers: clients that train by it keep to all that; where there is nothing to learn they stay; what is remembered
and kept of a client is what is declared; rates may be one a client. Of selectors: who is chosen is free, ascending, and
as many as are wanted; draws are named; what it remembers can be stored, and does not depend on the order of replies;
clients may come later; runs go on after an interruption. Of aggregators: neither the order of rows nor the sum of
weights matters, nor threads, nor how rows lie in memory; equal rows give that row; too few are refused, and huge ones
have a centre. Of transforms: a client is transformed alike in any company, and the bytes are those that what arrives
takes at least. Of data sets: arrays fit each other, damaged and absent files are one line, and a model is trained on
them. Of losses: gradients are autograd's, an example's is its own whoever is beside it, and where nothing counts
anything may stand. Of measures: a client has what its own examples come to, in any order; right outputs are the better
ones, and where there is no value that is said. Of models: inputs that it is not for are one line, outputs are as many
as the data want, and two rounds move it. Of trackers: a run with it is, to the byte, the run without, and with `read=`,
which gives what it has of a run, each row is there once, whatever interrupted the run.

Beside these an author wants a test of the rule itself, at best against a closed form: see `Quadratics`. `simulate` runs
a plug-in on a small problem; `blobs`, `mlp`, `small_problem`, `small_functions` and `small_experiment` are what it is
made of. The checks one by one are in `fedsim.testing.checks`, `option_checks`, `selectors`, `aggregators`,
`transforms`, `datasets`, `losses`, `measures`, `models`, `optimizers`, `trackers` and `specimen`, which has those of
the last nine kinds in common.
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
