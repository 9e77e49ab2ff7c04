"""How a run can end."""

from __future__ import annotations

from collections.abc import Mapping

ENDED: Mapping[str, bool] = {"finished": True, "stopped": True, "diverged": False, "stalled": False}
"""How a run can end that need not be done again, and whether it came to what it was to. Others were interrupted."""
