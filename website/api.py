"""Pages of the Python API: what `import fedsim` offers, and what authors of plug-ins import from which room."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping

API = "api"
"""The folder of these pages, and the entry of the navigation that they come under."""
ROOMS = {
    "fedsim": "What `import fedsim` offers: to run, to resume, to sweep, to compare, to bring data and functions.",
    "fedsim.server": "What a strategy imports. See [Write a strategy in ten minutes](../write_a_strategy.md).",
    "fedsim.client": "What a client algorithm imports.",
    "fedsim.zeroth_order": "What clients and strategies import that search with values alone.",
    "fedsim.server.selection": "What a selector imports. See [Write a selector](../write_a_selector.md).",
    "fedsim.exchange": "What aggregators and transforms import. See [Write an aggregator](../write_an_aggregator.md), "
    "[Write a transform](../write_a_transform.md).",
    "fedsim.problems.datasets": "What a data set imports. See [Your own data](../data.md).",
    "fedsim.problems.models": "What a model imports. See [Your own model](../models.md).",
    "fedsim.problems.measures": "What a measure imports. See [Measures](../measures.md).",
    "fedsim.nets.losses": "What a loss imports. See [Measures](../measures.md).",
    "fedsim.testing": "What finds out whether a plug-in is right.",
    "fedsim.flower": "What leads from Flower and to it. See [fedsim and Flower](../flower.md).",
}
"""The packages whose public names are shown, and what each is for."""


def pages() -> Mapping[str, str]:
    """Their places and texts, in the order of the navigation."""
    shown = set[str]()
    return {f"{API}/{room}.md": "\n".join(_page(room, purpose, shown)) for room, purpose in ROOMS.items()}


def _page(room: str, purpose: str, shown: set[str]) -> Iterator[str]:
    """Lines of a page. shown: the objects of earlier pages, to which this one leads."""
    package = importlib.import_module(room)
    yield f"# {room}"
    yield ""
    yield purpose
    here, elsewhere, types = list[str](), list[str](), list[str]()
    for name in package.__all__:
        found = getattr(package, name)
        home = getattr(found, "__module__", "")
        if not (inspect.isclass(found) or inspect.isfunction(found)) or not home.startswith("fedsim"):
            types.append(f"`{name}`")
            continue
        path = f"{home}.{found.__qualname__}"
        if path in shown:
            elsewhere.append(f"[`{name}`][{path}]")
        else:
            here.append(path)
            shown.add(path)
    if elsewhere:
        yield ""
        yield f"From here too: {', '.join(elsewhere)}."
    if types:
        yield ""
        yield f"Types and constants: {', '.join(types)}."
    for path in here:
        yield ""
        yield f"::: {path}"
