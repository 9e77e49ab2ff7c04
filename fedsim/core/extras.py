"""Libraries that come with extras, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from fedsim.core.errors import InputError, named_line


def library(name: str, extra: str, kind: str, option: str) -> ModuleType:
    """An installed library, or a module of one. InputError: it is not, or cannot be imported."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise InputError(option, kind, f"{name} cannot be imported: {named_line(error)}") from error
        remedy = f"needs {package}, which is not installed: pip install 'fedsim-lab[{extra}]'"
        raise InputError(option, kind, remedy) from error
    except Exception as error:  # of whatever kind is in a library that is built for another PyTorch
        remedy = f"{name} cannot be imported beside this PyTorch ({named_line(error)}); install builds of one kind"
        raise InputError(option, kind, remedy) from error
