"""Pictures of runs: curves, the label distribution of the clients, their own models, and where virtual time went.

Drawn with matplotlib's figures alone (no pyplot), so no global state is written; matplotlib is imported when
something is drawn. Every function writes one file, whole or not at all (StorageError: it cannot be written), as PNG,
PDF or SVG by its name; a `Picture` is one in memory.
"""

from fedsim.plots.costs import Panel, costs
from fedsim.plots.curves import Along, axes_of, compare_curves, curves, measured, ranked
from fedsim.plots.histograms import histograms
from fedsim.plots.labels import Dealt, label_distribution
from fedsim.plots.personal import personal
from fedsim.plots.picture import Picture
from fedsim.plots.style import format_of
from fedsim.plots.timeline import timeline, timelines

__all__ = [
    "Along",
    "Dealt",
    "Panel",
    "Picture",
    "axes_of",
    "compare_curves",
    "costs",
    "curves",
    "format_of",
    "histograms",
    "label_distribution",
    "measured",
    "personal",
    "ranked",
    "timeline",
    "timelines",
]
