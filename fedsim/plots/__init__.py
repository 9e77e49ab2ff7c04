"""Pictures of runs: curves, the label distribution of the clients, and where virtual time went.

Drawn with matplotlib's figures alone (no pyplot), so no global state is written; matplotlib is imported when
something is drawn. Every function writes one PNG, whole or not at all (StorageError: it cannot be written); a `Picture`
is one in memory.
"""

from fedsim.plots.curves import Along, axes_of, compare_curves, curves, measured
from fedsim.plots.histograms import histograms
from fedsim.plots.labels import label_distribution
from fedsim.plots.picture import Picture
from fedsim.plots.timeline import timeline, timelines

__all__ = [
    "Along",
    "Picture",
    "axes_of",
    "compare_curves",
    "curves",
    "histograms",
    "label_distribution",
    "measured",
    "timeline",
    "timelines",
]
