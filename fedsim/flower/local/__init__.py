"""What a Flower client app of anybody needs in its own training loop, for strategies of ours that need a client's help.

    control = scaffold(message, context)                 # as the app has loaded the model that was sent
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        control.correct(model, optimizer)                # between backward and step
        optimizer.step()
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics, **control.finish(model)})

`feddyn` and `proximal` read the same, `curriculum` gives a `DataLoader` its batches. What a client remembers is kept in
`Context.state`. PyTorch is imported where a helper is handed a model of it; clients with NumPy's arrays do without.

An app that has a function, and neither a model nor a loop, calls `searcher` once, and is a zeroth-order client of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.core.lazy import lazily

if TYPE_CHECKING:
    from fedsim.flower.local.corrections import feddyn, proximal, scaffold
    from fedsim.flower.local.examples import curriculum
    from fedsim.flower.searching import searcher

_HOMES = {
    "curriculum": "fedsim.flower.local.examples",
    "feddyn": "fedsim.flower.local.corrections",
    "proximal": "fedsim.flower.local.corrections",
    "scaffold": "fedsim.flower.local.corrections",
    "searcher": "fedsim.flower.searching",
}

__all__ = ["curriculum", "feddyn", "proximal", "scaffold", "searcher"]

__getattr__, __dir__ = lazily(__name__, _HOMES)
