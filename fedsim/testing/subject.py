"""What is held to the contract: a plug-in as an experiment file would name it, with partners, on small problems."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from fedsim.configuration.bases import BASES
from fedsim.configuration.tables import PLUGINS, Experiment, described
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.plugins import HasPlugins
from fedsim.engine.client import Client
from fedsim.problems.base import Problem
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.personal import OwnModels, own_models
from fedsim.running.result import Result
from fedsim.running.runner import run
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import TRAINING, small_experiment, small_functions, small_problem
from fedsim.testing.rounds import differ

Path = tuple[str, ...]
"""Where a plug-in stands in an experiment, such as `("client", "estimator")`: the options that lead to it."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"strategy": {"kind": "fedavg"}, "client": {"kind": "sgd", **TRAINING}}
"""Who takes the place of a partner that is not named."""
PARTS: Mapping[str, str] = {PLUGINS[part][0]: part for part in DEFAULTS}
"""The table of an experiment that names an algorithm, by its group."""
MEMBERS = {"datasets": "load", "models": "build"}
"""Groups of plug-ins that need not have a base of ours, and what tells them from others."""
TESTED = (*BASES, *MEMBERS)
"""Groups of plug-ins that there is a kit for."""
ROUNDS = 2
"""Of a run: enough for clients and servers to remember something, and to be asked again with it."""


@dataclass(frozen=True)
class Subject:
    """An experiment to be held to the contract.

    tables: of the experiment, in place of those of `small_experiment`. given: plug-ins that were handed over as
    objects, by part. values_only: run on `small_functions`, three of whose four clients take part, instead of
    `small_problem`. tolerance: by how much executors may differ in single precision, of the largest parameter, and in
    double by a ten-thousandth of that. alone: options of the strategy with which it makes do with one client.
    """

    tables: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    values_only: bool = False
    tolerance: float = 1e-5
    alone: Mapping[str, Any] = field(default_factory=dict)

    def simulation(
        self, dtype: torch.dtype = torch.float64, problem: Problem | None = None, **tables: Any
    ) -> Simulation:
        """A run of `ROUNDS` with the stacked executor, unless the subject's tables or these say otherwise.

        InputError: it cannot be run. problem: by default `self.problem(dtype)`.
        """
        settings: dict[str, Any] = {"engine": {"executor": "stacked"}, "rounds": ROUNDS}
        if self.values_only:
            settings["selection"] = {"kind": "uniform", "count": 3}
        experiment = small_experiment(**(settings | dict(self.tables) | tables))
        return build_simulation(experiment, self.problem(dtype) if problem is None else problem)

    def problem(self, dtype: torch.dtype = torch.float64) -> Problem:
        """Functions or examples, whichever it is run on: the same for all who ask, for no run changes its problem.

        Of the model on examples that is shared which `problem.shared` says. Where clients have models of their own,
        they have examples to be judged on.
        """
        shared = self.tables.get("problem", {}).get("shared", "all")
        client, strategy = self.part(("client",)), self.part(("strategy",))
        tested = client.own_models or not strategy.for_all or shared != "all"
        return _problem(dtype, self.values_only, tested, json.dumps(shared))

    def table(self, path: Path) -> dict[str, Any]:
        """The options that its tables give the plug-in at a path."""
        if len(path) > 1:
            table = self.table(path[:-1])[path[-1]]
        else:
            table = self.tables.get(path[0], DEFAULTS.get(path[0], PLUGINS[path[0]][1]))
        return {"kind": table} if isinstance(table, str) else dict(table)

    def part(self, path: Path) -> Any:
        """The plug-in at a path, made; None where it has none, such as a client without an estimator."""
        found = getattr(_experiment(self.described), path[0])
        for option in path[1:]:
            found = found.made.get(option) if isinstance(found, HasPlugins) else None
        return found

    def altered(self, path: Path, options: Mapping[str, Any], **tables: Any) -> Subject:
        """With other options of the plug-in at a path, None for one to be left out; and with other tables."""
        table = {name: value for name, value in (self.table(path) | dict(options)).items() if value is not None}
        for end in range(len(path) - 1, 0, -1):
            table = self.table(path[:end]) | {path[end]: table}
        return replace(self, tables={**self.tables, **tables, path[0]: table})

    @property
    def fits_functions(self) -> bool:
        """Whether its clients ask for values only, and not of some of their examples."""
        return fits_functions(self.part(("client",)))

    def course(self, dtype: torch.dtype = torch.float64, **tables: Any) -> Course:
        """Its run, with these tables; one for all who ask."""
        return _course(replace(self, tables={**self.tables, **tables}).described, self.values_only, dtype)

    def end(self, dtype: torch.dtype = torch.float64, **tables: Any) -> Tensor:
        """What `final` says of its run, with these tables; one run for all who ask."""
        return self.course(dtype, **tables).end

    @property
    def described(self) -> str:
        """Its tables as text, which names what is computed once for many checks."""
        try:
            return json.dumps(dict(self.tables), sort_keys=True)
        except TypeError as error:
            raise InputError("tables", str(error), "write them as an experiment file would have them") from error


def fits_functions(client: Client) -> bool:
    """Whether a client asks for values only, and not of some of its examples."""
    return client.values_only and client.batch_size == "full"


def final(simulation: Simulation) -> Tensor:
    """The parameters [d] at the end of a run, and after them what clients have of their own, if that is judged.

    And what they are judged by, where it is not what their models say.
    """
    for _ in simulation:
        pass
    parts, state = simulation.parts, simulation.state
    if not parts.whose.own:
        return state.params
    assert isinstance(parts.problem, Supervised)
    owned = own_models(parts.engine, parts.problem, parts.strategy, state, parts.tuning)
    kept = [*OwnModels(parts.problem, owned, None, (), parts.evaluation).tensors().values()]
    if type(owned.executor.client).outputs is not Client.outputs:
        kept += [owned.outputs(*examples) for examples in parts.problem.judged.by_clients(("test",)).values()]
    return torch.cat((state.params, *(rows.flatten() for rows in kept)))


class Course:
    """A run that goes on as far as it is asked about."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation, self._coming, self._rows = simulation, iter(simulation), list[Tensor]()

    def after(self, row: int) -> Tensor | None:
        """The parameters [d] after a row, of which the first is 0; None: there are fewer."""
        while len(self._rows) <= row:
            if next(self._coming, None) is None:
                return None
            self._rows.append(self._simulation.state.params)
        return self._rows[row]

    @cached_property
    def end(self) -> Tensor:
        """What `final` says of it."""
        while self.after(len(self._rows)) is not None:
            pass
        return final(self._simulation)


def part_ways(first: Course, second: Course) -> bool:
    """Whether two runs differ after a row, beyond which they are not followed, or at their end."""
    row = 0
    while (one := first.after(row)) is not None and (two := second.after(row)) is not None:
        if differ(one, two):
            return True
        row += 1
    return differ(first.end, second.end)


def simulate(
    *, strategy: Any = None, client: Any = None, problem: Problem | None = None, rounds: int = 3, **tables: Any
) -> Result:
    """Run a strategy and a client, objects, names or tables, on a small problem, and return the result.

    problem: by default `small_problem()`. tables: others of `small_experiment`.
    """
    partners = {part: made for part, made in (("strategy", strategy), ("client", client)) if made is not None}
    named = {
        part: made if isinstance(made, Mapping | str) else table_of(PLUGINS[part][0], made)
        for part, made in partners.items()
    }
    experiment = small_experiment(rounds=rounds, **tables, **named)
    return run(experiment, problem=small_problem() if problem is None else problem, save=False)


def table_of(group: str, plugin: Any) -> dict[str, Any]:
    """The table that stands for an object in an experiment file: its `kind`, and each option with its value.

    group: of plug-ins. InputError: an experiment file could not name its class.
    """
    cls = type(plugin)
    if cls.__module__ == plugins.MAIN or cls.__qualname__ != cls.__name__:
        place = "a script" if cls.__module__ == plugins.MAIN else "another class or function"
        remedy = f"no experiment can name a class within {place}; move it to a file's top"
        raise InputError("plugin", cls.__qualname__, remedy)
    return described(group, plugin)


def group_of(plugin: Any) -> str:
    """The group of plug-ins that an object is of. InputError: none that has a kit, or its options cannot be read."""
    if isinstance(plugin, type):
        raise InputError("plugin", plugin.__name__, "hand over an object, made with its options")
    kind = type(plugin)
    if "__dataclass_fields__" not in vars(kind):
        raise InputError("plugin", kind.__name__, "its options cannot be read; put @options above the class")
    for group in TESTED:
        if isinstance(plugin, BASES[group][1]) if group in BASES else hasattr(plugin, MEMBERS[group]):
            return group
    bases = ", ".join(f"{room}.{base.__name__}" for room, base in BASES.values())
    raise InputError(
        "plugin", kind.__name__, f"it has no kit: make it a subclass of one of {bases}, or give it load or build"
    )


def values_of(made: Any) -> dict[str, Any]:
    """A plug-in's options; of those that name another plug-in, that one's."""
    own = {option.name: getattr(made, option.name) for option in dataclasses.fields(made)}
    inner = made.made.items() if isinstance(made, HasPlugins) else ()
    return {**own, **{name: values_of(part) for name, part in inner}}


@cache
def _experiment(described: str) -> Experiment:
    return small_experiment(**json.loads(described))


@cache
def _problem(dtype: torch.dtype, values_only: bool, tested: bool, shared: str) -> Problem:
    return small_functions(dtype) if values_only else small_problem(dtype, tested=tested).sharing(json.loads(shared))


@cache
def _course(tables: str, values_only: bool, dtype: torch.dtype) -> Course:
    return Course(Subject(json.loads(tables), values_only=values_only).simulation(dtype))
