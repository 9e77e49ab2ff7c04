"""Experiment files: a TOML table a part, checked whole before anything runs.

Tables that name a plug-in (`kind = ...`) are checked by that plug-in's own options. `Experiment.resolved` is the file
with every default written out; reading it back gives the same experiment.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.configuration.bases import hold_base
from fedsim.configuration.evaluation import Evaluation, Stopping
from fedsim.configuration.places import experiment_file, placed
from fedsim.core import plugins
from fedsim.core.documents import hold_shallow, parse_toml, read_toml
from fedsim.core.errors import InputError, naming
from fedsim.core.files import look, path_of, reason
from fedsim.core.near import meant
from fedsim.core.options import Name, NonNegativeInt, PositiveInt, Seconds, options
from fedsim.core.plugins import HasPlugins, is_only_here, kind_of
from fedsim.devices import Devices
from fedsim.devices.faults import Faults
from fedsim.engine.client import Client
from fedsim.engine.options import EngineOptions
from fedsim.exchange.transforms import Chain, Transform
from fedsim.privacy.options import Privacy
from fedsim.server.strategy import Strategy
from fedsim.trackers.base import Tracker
from fedsim.trackers.secrets import hold_no_secrets

Table = Mapping[str, Any]
TRANSFORMS = ("transforms", "order_transforms")
"""Lists of transforms: of the clients' replies, and of the server's orders."""
LISTS: Mapping[str, str] = {**dict.fromkeys(TRANSFORMS, "transforms"), "track": "trackers"}
"""Lists of plug-ins, by the group that these are of."""
TOP = ("name", "seed", "rounds", "duration")
INSTEAD = {"count": "fraction", "steps": "epochs"}
"""Options of which the first takes the place of the second, where that has its default of `PLUGINS`."""
NOTES = ("resolved", "versions", "arithmetic", "data")
"""Tables that a run writes into its config.toml and that say nothing about what to do."""
PLUGINS: dict[str, tuple[str, str | Table]] = {
    "problem": ("problems", "supervised"),
    "strategy": ("strategies", "fedavg"),
    "client": ("clients", {"kind": "sgd", "epochs": 1}),
    "partition": ("partitions", {"kind": "iid", "clients": 10}),
    "selection": ("selectors", {"kind": "uniform", "fraction": 1.0}),
    "aggregation": ("aggregators", "mean"),
}


@options
class Checkpointing:
    """When a run writes a checkpoint; it changes no result."""

    every: NonNegativeInt | None = None
    """Rounds between two checkpoints; 0: none is written. Not given: so many that they take up to 5 % of the time."""
    keep: PositiveInt = 2
    """So many of the last checkpoints are kept while the run goes on; when it has ended, none."""
    last: bool = True
    """When the run has had all its rounds, leave its state in end.safetensors, from which it can have more."""

    def __post_init__(self) -> None:
        if self.every == 0 and self.keep != 2:
            raise InputError("keep", self.keep, "every = 0 says that there are none; leave one of the two out")


TABLES: Mapping[str, type[Any]] = {
    "evaluation": Evaluation,
    "stopping": Stopping,
    "privacy": Privacy,
    "devices": Devices,
    "faults": Faults,
    "engine": EngineOptions,
    "checkpoint": Checkpointing,
}
"""Tables that are no plug-ins, and whose options stand in them."""
ONLY_GIVEN = ("stopping", "privacy")
"""Those of them that say something only where they are given."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A checked experiment. The parts are the plug-ins' own objects; see `experiment` and `load` to make one."""

    name: str
    seed: int
    rounds: int | None
    duration: float | None
    problem: Any
    partition: Any
    selection: Any
    strategy: Strategy
    client: Client
    aggregation: Any
    transforms: tuple[Any, ...]
    order_transforms: tuple[Any, ...]
    track: tuple[Tracker, ...]
    evaluation: Evaluation
    stopping: Stopping | None
    privacy: Privacy | None
    devices: Devices
    faults: Faults
    engine: EngineOptions
    checkpoint: Checkpointing
    data_dir: Path | None = None
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    """The tables and options that somebody has written down, as `problem` and `problem.start`."""

    def resolved(self) -> dict[str, Any]:
        """Every option with its value, as tables that `experiment` accepts."""
        found: dict[str, Any] = {"name": self.name, "seed": self.seed}
        found |= {name: value for name in ("rounds", "duration") if (value := getattr(self, name)) is not None}
        for part, (group, _) in PLUGINS.items():
            found[part] = described(group, getattr(self, part))
        if self.values_only:
            del found["partition"]
        for part in TRANSFORMS:
            found[part] = [described("transforms", made) for made in getattr(self, part)]
        if self.track:
            found["track"] = [described("trackers", made) for made in self.track]
        for part in ("evaluation", "devices", "engine", "checkpoint"):
            found[part] = _values(getattr(self, part))
        if self.faults.kinds:
            found["faults"] = _values(self.faults)
        found |= {name: _values(made) for name in ONLY_GIVEN if (made := getattr(self, name)) is not None}
        return found

    @property
    def values_only(self) -> bool:
        """Whether all that clients can ask is what the values of their functions are."""
        values_only: bool = self.problem.values_only
        return values_only

    def with_seed(self, seed: int) -> Experiment:
        """The same experiment under another seed."""
        return dataclasses.replace(self, seed=seed)


@options
class Top:
    """The keys of an experiment file that are not tables."""

    name: Name = "experiment"
    """The experiment's name, which its run folders bear."""
    seed: int = 0
    """The run's seed, of which all its draws are made."""
    rounds: PositiveInt | None = None
    """Where the run ends. Not given: after 100, if it has no duration."""
    duration: Seconds | None = None
    """Virtual seconds after which the run ends. Not given: only rounds count."""


def experiment(*, data_dir: Path | str | None = None, **tables: Any) -> Experiment:
    """Check an experiment given as tables, as in a file: `experiment(rounds=50, client={"kind": "sgd", "epochs": 5})`.

    Wherever a table may stand, so may the object that it describes, as `client=Sgd(epochs=5)`, be its class installed
    or not. Raises InputError for the first option that cannot be used.
    """
    tables = {name: value for name, value in tables.items() if name not in NOTES}
    for name, value in tables.items():
        try:
            hold_shallow(value)
        except ValueError as error:
            raise InputError(name, type(value).__name__, f"cannot be used: {error}") from error
    tables = placed(tables, Path.cwd())
    _hold_writable(tables)
    known = (*TOP, *PLUGINS, *LISTS, *TABLES)
    for name, value in tables.items():
        if name not in known:
            raise InputError(name, value, f"no such option here; remove it or correct its name{meant(name, known)}")
    top = _checked(Top, {name: tables[name] for name in TOP if name in tables}, "")
    given = {part: tables.get(part, default) for part, (_, default) in PLUGINS.items()}
    if isinstance(given["problem"], Mapping):  # which alone may leave its kind out
        given["problem"] = {"kind": PLUGINS["problem"][1]} | dict(given["problem"])
    made = {part: plugins.make(group, given[part], part) for part, (group, _) in PLUGINS.items()}
    for part, group in LISTS.items():
        several = tables.get(part, [])
        if not isinstance(several, list | tuple):
            raise InputError(part, several, f"write each as a [[{part}]] table")
        if part == "track":
            hold_no_secrets(several)
        made[part] = tuple(plugins.make(group, table, f"{part}.{number}") for number, table in enumerate(several))
    checked = Experiment(
        name=top.name,
        seed=top.seed,
        rounds=100 if top.rounds is None and top.duration is None else top.rounds,
        duration=top.duration,
        **{name: _options(tables.get(name, {}), name) for name in TABLES if name not in ONLY_GIVEN},
        stopping=_options(tables["stopping"], "stopping") if "stopping" in tables else None,
        privacy=_options(tables["privacy"], "privacy") if "privacy" in tables else None,
        data_dir=None if data_dir is None else path_of(data_dir, "data_dir"),
        given=frozenset(_names(tables)),
        **made,
    )
    if checked.values_only and "partition" in tables:
        kind, dealt = kind_of("problems", checked.problem), kind_of("partitions", checked.partition)
        raise InputError("partition", dealt, f"problem {kind} has no examples to deal; remove it")
    for part in PLUGINS:
        hold_base(part, PLUGINS[part][0], made[part])
    for part, group in LISTS.items():
        for number, plugin in enumerate(made[part]):
            hold_base(f"{part}.{number}", group, plugin)
    hold_pair(checked.strategy, checked.client, checked.transforms)
    return checked


def load(
    path: Path | str,
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    data_dir: Path | str | None = None,
) -> Experiment:
    """Read an experiment file, in which paths are from its own folder; or one that comes with fedsim, by its name.

    overrides: `table.option=value` in TOML syntax, with paths from the current folder; bare words are strings.
    """
    path = experiment_file(path)
    if look(path, "experiment") is None:
        raise InputError("experiment", str(path), "there is no such file")
    try:
        tables = read_toml(path)
    except OSError as error:
        raise InputError("experiment", str(path), f"cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise InputError("experiment", str(path), f"is not TOML: {error}") from error
    tables = override(placed(tables, path.absolute().parent), overrides)
    if seed is not None:
        tables["seed"] = seed
    return experiment(data_dir=data_dir, **tables)


def override(tables: Table, assignments: Iterable[str]) -> dict[str, Any]:
    """Tables with others of their options: `table.option=value` in TOML syntax; bare words are strings.

    In whatever order they are given: tables come before what stands in them and kinds before other options; of two for
    the same option the last counts. One of two options that exclude each other takes the other's default away.
    """
    changed, parsed = dict(tables), [_parsed(assignment) for assignment in assignments]
    for path, text, assignment in sorted(parsed, key=lambda entry: (len(entry[0]), entry[0][-1] != "kind")):
        _override(changed, path, text, assignment)
    assigned = [path for path, _, _ in parsed]
    for part in PLUGINS:
        for option in (option for option in INSTEAD if [part, option] in assigned):
            if [part, INSTEAD[option]] not in assigned and isinstance(changed.get(part), Mapping):
                changed[part] = _without_default(part, changed[part], option)
    return changed


def _parsed(assignment: str) -> tuple[list[str], str, str]:
    """The path of an assignment, the text of its value, and the whole."""
    name, equals, text = assignment.partition("=")
    path = [part.strip() for part in name.split(".")]
    if not equals or not all(path):
        raise InputError("set", assignment, "write table.option=value")
    return path, text.strip(), assignment


def _override(tables: dict[str, Any], path: list[str], text: str, assignment: str) -> None:
    """Carry out one `--set`, in copies of inner tables.

    `none` takes an option away; a new `kind` keeps those options that it has, too.
    """
    value: Any
    try:
        value, *further = parse_toml(f"value = {text}").values()
    except tomllib.TOMLDecodeError:
        value, further = text, []
    except ValueError as error:
        raise InputError("set", assignment, f"cannot be used: {error}") from error
    if further:
        raise InputError("set", assignment, "this is more than one value; write one --set for each")
    removed = text == "none"
    table = tables
    for place, part in enumerate(path[:-1]):
        if removed and part not in table:
            raise InputError("set", assignment, f"there is no {part} in the file")
        inner = table.get(part)
        if inner is None:
            inner = _inner_default(tables, path[: place + 1]) if place else _default(part)
        if isinstance(inner, str):  # a plug-in named without options
            inner = {"kind": inner}
        if not isinstance(inner, Mapping):
            raise InputError("set", assignment, f"{part} is not a table")
        table[part] = dict(inner)
        table = table[part]
    if removed:
        if path[-1] not in table:
            raise InputError("set", assignment, f"there is no {path[-1]} in the file")
        del table[path[-1]]
        return
    group = _group(tables, path[:-1])
    if path[-1] == "kind" and group is not None and value != table.get("kind"):
        known = {field.name for field in dataclasses.fields(plugins.option_class(group, str(value), ".".join(path)))}
        for option in [option for option in table if option not in known]:
            del table[option]
    table[path[-1]] = value


def _group(tables: Table, path: list[str]) -> str | None:
    """The group of the plug-in whose table stands at a path, as `client.adversarial.attack`; None: of none."""
    table: Table = tables
    group: str | None = None
    for place, part in enumerate(path):
        if place == 0:
            group = PLUGINS[part][0] if part in PLUGINS else None
        else:
            owner: Any = TABLES.get(path[0]) if place == 1 else None
            kind = table.get("kind", _default(path[0]).get("kind") if place == 1 else None)
            if group is not None and kind is not None:
                owner = plugins.find(group, str(kind), ".".join((*path[:place], "kind")))
            group = owner.parts.get(part) if owner is not None and issubclass(owner, HasPlugins) else None
        table = table[part]
    return group


def _default(part: str) -> dict[str, Any]:
    """The table that stands for a part of a file by default."""
    default = PLUGINS[part][1] if part in PLUGINS else {}
    return {"kind": default} if isinstance(default, str) else dict(default)


def _inner_default(tables: Table, path: list[str]) -> Any:
    """The name or table that stands by default for a plug-in's plug-in, as `client.optimizer`; empty for none."""
    group = _group(tables, path[:-1])
    if group is None:
        return {}
    table: Any = tables
    for part in path[:-1]:
        table = table[part]
    kind = str(table.get("kind", _default(path[0]).get("kind") if len(path) == 2 else None))
    owner = plugins.find(group, kind, ".".join((*path[:-1], "kind")))
    if not issubclass(owner, HasPlugins) or path[-1] not in owner.parts:
        return {}
    (field,) = (field for field in dataclasses.fields(owner) if field.name == path[-1])  # type: ignore[arg-type]
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return default if isinstance(default, str | Mapping) else {}


def _without_default(part: str, table: Table, option: str) -> dict[str, Any]:
    """A part's table without the default of the other option, where this one has taken its place."""
    other = INSTEAD[option]
    default = _default(part).get(other)
    return {name: value for name, value in table.items() if name != other or default is None or value != default}


def hold_pair(strategy: Strategy, client: Client, transforms: Sequence[Transform] = ()) -> None:
    """Refuse a strategy and a client that do not speak of the same things, or transforms of what is not sent."""
    names = {"strategy": kind_of("strategies", strategy), "client": kind_of("clients", client)}
    fault = _misfit(strategy, client)
    if fault is not None:
        fitting = [name for name in plugins.names("clients") if _fits(strategy, name, client)]
        advice = f"; take client.kind = {' or '.join(fitting)}" if fitting else ""
        if names["client"] in plugins.names("strategies"):
            advice += f"{', or' if fitting else '; take'} strategy.kind = {names['client']}"
        raise InputError("client.kind", names["client"], f"with strategy {names['strategy']} {fault}{advice}")
    Chain(tuple(transforms)).check(strategy.up, strategy.up)
    _hold_summed(strategy, client, transforms)
    with naming("client"):
        client.check(strategy.down)


def _hold_summed(strategy: Strategy, client: Client, transforms: Sequence[Transform]) -> None:
    """Refuse changes of estimates for a strategy that does not add them up, or other vectors for one that does."""
    kind = kind_of("strategies", strategy)
    for number, one in enumerate(transforms):
        names = one.vectors or ("delta",)
        if one.increments and not strategy.adds_up.issuperset(names):
            remedy = f"strategy {kind} does not add up how {', '.join(names)} changes; take estimate, or strategy ef21"
            raise InputError(f"transforms.{number}.arrives", "increment", remedy)
        committed = client.commits.intersection(names)
        if one.feeds_back and committed:
            remedy = f"of {', '.join(committed)} clients keep the estimate themselves, as ef21 would; leave it out"
            raise InputError(f"transforms.{number}.vectors", ", ".join(names), remedy)
    hold_added(strategy, transforms)


def hold_added(strategy: Strategy, transforms: Sequence[Transform]) -> None:
    """Refuse (InputError) a strategy that adds up changes of estimates where no transform makes them."""
    tracked = {name for one in transforms if one.increments for name in one.vectors or ("delta",)}
    if strategy.adds_up - tracked:
        remedy = f"it adds up how {', '.join(strategy.adds_up)} changes; list a transform ef21 with arrives = increment"
        raise InputError("strategy.kind", kind_of("strategies", strategy), f"{remedy}, and a compressor")


def _misfit(strategy: Strategy, client: Client) -> str | None:
    """What keeps a client from working for a strategy; None: nothing does."""
    for missing, words in (
        (strategy.up - client.up, "which this client does not send back"),
        (strategy.down - (client.requires | client.accepts), "which this client does not understand"),
        (client.requires - strategy.down, "which the strategy does not send"),
    ):
        if missing:
            return f"it must exchange {', '.join(sorted(missing))}, {words}"
    return None


def _fits(strategy: Strategy, kind: str, client: Any) -> bool:
    """Whether an installed client would work for a strategy, with this one's options or otherwise few."""
    made = plugins.find("clients", kind, "client.kind")
    known = {field.name for field in dataclasses.fields(made)}
    like = {field.name: getattr(client, field.name) for field in dataclasses.fields(client) if field.name in known}
    for given in (like, {}, {"steps": 1}):
        try:
            return _misfit(strategy, made(**given)) is None
        except InputError:  # it needs others
            continue
    return False


def _names(tables: Table) -> Iterator[str]:
    """The names of tables and of the options in them; of an object, of those that are not as by default."""
    for name, table in tables.items():
        yield name
        if isinstance(table, Mapping):
            yield from (f"{name}.{option}" for option in table)
        elif dataclasses.is_dataclass(table):
            fields = dataclasses.fields(table)
            yield from (f"{name}.{field.name}" for field in fields if getattr(table, field.name) != field.default)


def _hold_writable(value: Any, name: str = "") -> None:
    """Refuse what TOML does not have: whole numbers of more than 64 bits, and names that are no words."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(name, value, "whole numbers have 64 bits; take a smaller one")
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in inner:
        if isinstance(value, Mapping) and not isinstance(key, str):
            raise InputError(name, key, "names of options are words; correct this one")
        _hold_writable(part, f"{name}.{key}" if name else str(key))


def _options(table: Any, name: str) -> Any:
    """The options of one of `TABLES`, given as a table or as an object."""
    if isinstance(table, TABLES[name]):
        return table
    if not isinstance(table, Mapping):
        raise InputError(name, table, "is a table; write its options under it")
    return _checked(TABLES[name], table, name)


def _checked(cls: Any, values: Mapping[str, Any], part: str) -> Any:
    with naming(part):
        return cls(**values)


def hold_findable(tables: Any, remedy: str, name: str = "") -> None:
    """Refuse plug-ins whose classes no other process finds. tables: as `Experiment.resolved` writes them."""
    kind = tables.get("kind") if isinstance(tables, Mapping) else None
    if isinstance(kind, str) and is_only_here(kind):
        raise InputError(f"{name}.kind", kind, f"other processes do not find this class; {remedy}")
    inner = tables.items() if isinstance(tables, Mapping) else enumerate(tables) if isinstance(tables, list) else ()
    for key, table in inner:
        hold_findable(table, remedy, f"{name}.{key}" if name else str(key))


def described(group: str, plugin: Any) -> dict[str, Any]:
    """The table that stands for a plug-in: its `kind`, and each option with its value."""
    return {"kind": kind_of(group, plugin)} | _values(plugin)


def _values(made: Any) -> dict[str, Any]:
    """The options of a plug-in as TOML values; a nested one says its kind, and None is left out."""
    found = {}
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if dataclasses.is_dataclass(value):
            kind = getattr(type(value), "kind", None)
            value = ({} if kind is None else {"kind": kind}) | _values(value)
        if value is not None:
            found[field.name] = _plain(value)
    for option, inner in made.made.items() if isinstance(made, HasPlugins) else ():
        group = made.parts[option]
        several = isinstance(inner, tuple)
        found[option] = [described(group, one) for one in inner] if several else described(group, inner)
    return found


def _plain(value: Any) -> Any:
    """A value with lists in place of tuples, in tables too."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
