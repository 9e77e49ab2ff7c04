"""Where the command `fedsim` begins: beside the package of that name, which another distribution may write over.

On the package index "fedsim" is another project, which installs a package called as ours is; ours is "fedsim-lab".
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

OURS = Path(__file__).resolve().parent / "fedsim" / "__init__.py"
SIGN = b"fedsim-lab"
"""Our package says this in its first lines."""


def main() -> None:
    """Run the command, if the package is ours; of another's nothing is executed, and one line says what to do."""
    found = importlib.util.find_spec("fedsim")
    place = Path(found.origin).resolve() if found is not None and found.origin is not None else None
    if place is None or SIGN not in place.read_bytes():
        hidden = place is not None and place != OURS
        done = "hides this one" if hidden else "has written over this one"
        again = "" if hidden else " && pip install --force-reinstall --no-deps fedsim-lab"
        print(f"fedsim: another distribution called fedsim {done}; pip uninstall fedsim{again}", file=sys.stderr)
        sys.exit(2)
    from fedsim.cli.main import main as command

    command()
