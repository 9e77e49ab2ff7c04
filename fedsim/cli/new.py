"""`fedsim new`: files to begin with, whose own tests pass as they are. Nothing is fetched and nothing overwritten."""

from __future__ import annotations

import builtins
import importlib.resources
import keyword
import re
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from fedsim.core.errors import InputError
from fedsim.core.near import name_one
from fedsim.core.plugins import names
from fedsim.core.terminal import tell

PROJECT: Mapping[str, str] = {
    "$name/pyproject.toml": "pyproject.toml",
    "$name/README.md": "readme.md",
    "$name/.gitignore": "ignore",
    "$name/$name/__init__.py": "package.py",
    "$name/$name/strategy.py": "strategy.py",
    "$name/tests/test_strategy.py": "strategy_test.py",
    "$name/$name.toml": "experiment.toml",
}
"""What is written of a project, as of each kind below."""
SCAFFOLDS: Mapping[str, Mapping[str, str]] = {
    **{
        kind: {"$name.py": f"{kind}.py", "test_$name.py": f"{kind}_test.py", "$name.toml": "experiment.toml"}
        for kind in (
            "strategy",
            "client",
            "optimizer",
            "selector",
            "aggregator",
            "transform",
            "dataset",
            "loss",
            "measure",
            "model",
            "tracker",
            "flower",
        )
    },
    "experiment": {
        "test_$name.py": "experiment_test.py",
        "$name.toml": "experiment.toml",
    },
    "project": PROJECT,
    "app": {
        **PROJECT,
        "$name/README.md": "app_readme.md",
        "$name/$name/task.py": "app_task.py",
        "$name/$name/client_app.py": "app_client.py",
        "$name/$name/server_app.py": "app_server.py",
        "$name/tests/test_app.py": "app_test.py",
    },
}
"""What is written of each kind, and from which file of the folder `templates`."""
KINDS = tuple(kind for kind in SCAFFOLDS if kind not in ("flower", "app"))
PROJECTS = ("project", "app")
"""Those that are a folder of their own."""
LONGEST = 30
"""Characters of a name: lines that it stands in are made for that."""
SKEWED = """kind = "dirichlet"        # each class is shared out in proportions drawn from Dir(alpha)
clients = 100
alpha = 0.3               # small is uneven"""
ALIKE = """kind = "iid"              # or "dirichlet", with alpha
clients = 100"""
PLAIN: Mapping[str, str] = {
    "data": "handwritten digits, 100 clients with skewed labels",
    "dataset": '"digits"',
    "model": '{ kind = "mlp", hidden = [64] }',
    "partition": SKEWED,
    "selection": 'kind = "uniform"',
    "strategy": '[strategy]\nkind = "fedavg"',
    "client": '[client]\nkind = "sgd"',
    "more": "",
    "metrics": "",
    "flower": "",
}
"""What stands in the experiment of a scaffold for its words, unless this is what is written."""
INSTALLED = '[strategy]\nkind = "$name"\ndecay = 0.001'
APP = """# What `fedsim flower run .` and `flwr run .` read.
[tool.flwr.app]
publisher = "$distribution"

[tool.flwr.app.components]
serverapp = "$name.server_app:app"
clientapp = "$name.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 10
fraction-train = 1.0
local-epochs = 1
lr = 0.1
decay = 0.001
seed = 0
out = ""                  # a folder for rows and checkpoints, in which a server that was killed goes on

"""
OWN: Mapping[str, Mapping[str, str]] = {
    "strategy": {"strategy": '[strategy]\nkind = "$file"\ndecay = 0.001'},
    "project": {"strategy": INSTALLED},
    "app": {"strategy": INSTALLED, "flower": APP},
    "flower": {"strategy": '[strategy]\nkind = "flwr:$file"\nrate = 0.5'},
    "client": {"client": '[client]\nkind = "$file"\nthreshold = 0.001'},
    "optimizer": {"client": '[client]\nkind = "sgd"\noptimizer = { kind = "$file", power = 0.5 }'},
    "selector": {"selection": 'kind = "$file"\nshare = 0.5'},
    "aggregator": {"more": '[aggregation]\nkind = "$file"\nfactor = 1.0\n\n'},
    "transform": {"more": '[[transforms]]\nkind = "$file"\nlevels = 127\n\n'},
    "loss": {"model": '{ kind = "mlp", hidden = [64] }\nloss = { kind = "$file", q = 0.7 }'},
    "measure": {"metrics": '\nmetrics = [{ kind = "$file", least = 5 }, "auroc"]'},
    "model": {"model": '{ kind = "$file", width = 32 }'},
    "tracker": {"more": '[[track]]\nkind = "$file"\nfolder = "told"\n\n'},
    "dataset": {
        "dataset": '{ kind = "$file", noise = 0.2 }',
        "data": "points around two rings, 100 clients alike",
        "partition": ALIKE,
    },
}
"""The same of each kind, where it has words of its own."""
TRAINING = "epochs = 5                # or steps = 20\nbatch_size = 4\nlr = 0.1"

Kind = Annotated[
    str,
    typer.Argument(
        help=f"One of: {', '.join(KINDS)}.",
        autocompletion=lambda incomplete: [kind for kind in KINDS if kind.startswith(incomplete)],
    ),
]
Name = Annotated[str, typer.Argument(help="In lower case, as of a Python module: my_mean.")]
Flower = Annotated[bool, typer.Option("--flower", help="A strategy of Flower's, which runs here and there.")]
FlowerStrategy = Annotated[
    bool, typer.Option("--flower-strategy", help="A project with a Flower app, in which its strategy runs.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]


def new(
    kind: Kind, name: Name, flower: Flower = False, flower_strategy: FlowerStrategy = False, force: Force = False
) -> None:
    """Write a plug-in with its test and an experiment, an experiment, or a project, in this folder."""
    if kind not in KINDS:
        raise InputError("kind", kind, name_one(kind, KINDS))
    if flower and kind != "strategy":
        raise InputError("flower", True, "only a strategy can be one of Flower's; leave it out")
    if flower_strategy and kind != "project":
        raise InputError("flower-strategy", True, "only a project has an app; leave it out")
    chosen = "flower" if flower else "app" if flower_strategy else kind
    texts = scaffold(chosen, name)
    if kind == "project" and name in names("strategies"):
        raise InputError("name", name, f"{name} is an installed strategy already; choose another name")
    present = [path for path in (*texts, *([name] if kind == "project" else [])) if Path(path).exists()]
    if present and not force:
        raise InputError("name", name, f"{present[0]} exists; choose another name or pass --force")
    for path, text in texts.items():
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise InputError("name", name, f"{path} cannot be written: {error.strerror}") from error
        tell(path)
    tell(f"next: {_next(chosen, name)}")


def scaffold(kind: str, name: str) -> dict[str, str]:
    """The files of a scaffold, by path. kind: of `SCAFFOLDS`. InputError: the name is not one to begin with."""
    title = "".join(part.capitalize() for part in name.split("_"))
    templates = {path: _template(file) for path, file in SCAFFOLDS[kind].items()}
    _check(name, title, " ".join(templates.values()))
    project = kind in PROJECTS
    words = {"name": name, "title": title, "file": f"./{name}.py:{title}"}
    words["distribution"] = name.replace("_", "-")  # as Flower wants an app to be called
    words |= {"module": f"{name}.strategy" if project else name, "up": "s[1]" if project else ""}
    words |= {word: Template(text).substitute(words) for word, text in {**PLAIN, **OWN.get(kind, {})}.items()}
    words["client"] += f"\n{TRAINING}"
    return {Template(path).substitute(words): Template(text).substitute(words) for path, text in templates.items()}


def _template(file: str) -> str:
    return (importlib.resources.files("fedsim.cli") / "templates" / f"{file}.txt").read_text(encoding="utf-8")


def _check(name: str, title: str, text: str) -> None:
    """Refuse a name that would hide something: of Python, of what is installed, or of what the text itself uses."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > LONGEST:
        raise InputError("name", name, f"write up to {LONGEST} small letters, digits and _, beginning with a letter")
    if name.startswith("test_") or name in ("conftest", "tests"):
        raise InputError("name", name, "pytest would take it for something of its own; choose another name")
    here = Path.cwd()
    installed = [place for place in sys.path if place and Path(place).resolve() != here]
    taken = name in sys.stdlib_module_names or PathFinder.find_spec(name, installed) is not None
    if taken or keyword.iskeyword(name):
        raise InputError("name", name, "is a module or a word of Python's already; choose another name")
    used = re.findall(r"\w+", text.replace("$title", ""))
    if title in used or hasattr(builtins, title) or keyword.iskeyword(title):
        raise InputError("name", name, f"{title} is needed for something else; choose another name")


def _next(kind: str, name: str) -> str:
    if kind in PROJECTS:
        then = "fedsim flower run ." if kind == "app" else f"fedsim run {name}.toml"
        return f"cd {name}, then pip install -e '.[dev]', pytest, {then}"
    return f"pytest test_{name}.py, fedsim run {name}.toml"
