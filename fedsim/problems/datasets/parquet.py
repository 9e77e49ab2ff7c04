"""A person's own data: a table in Parquet files, as pandas, Spark and the hubs of data sets write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.problems.datasets.arrow import PATH, is_text, opened, parquet_files, read_columns, spelled
from fedsim.problems.datasets.tables import Table

if TYPE_CHECKING:
    from fedsim.problems.datasets.cells import Cells, Texts


@options
class Parquet(Table):
    """A table of Parquet with the options of one of text; needs `pip install "fedsim-lab[parquet]"`.

    Its columns are numbers, texts, truth values, categories or dates, which count as texts. Columns of anything else,
    such as lists or images, are to be left out.
    """

    path: str
    """The file, or a folder whose files (`*.parquet`) have the same columns; absolute, or below the current or the data
    folder. `data/train-*.parquet` are several, too.
    """

    def _files(self, folder: DataFolder, path: str, option: str) -> list[Path]:
        return parquet_files(folder, path, option)

    def _read(self, paths: Sequence[Path]) -> Cells:
        from fedsim.problems.datasets.cells import stacked

        return stacked([self._table(path) for path in paths])

    def _table(self, path: Path) -> Cells:
        """The cells of a file; columns that are not learned from are empty, whatever they hold."""
        import numpy as np
        import pandas

        from fedsim.problems.datasets.cells import Cells

        with opened(path) as file:
            names = list(file.schema_arrow.names)
            if not names or not file.metadata.num_rows:
                raise InputError(PATH, str(path), "the table has no row of data")
            used = self._used(names)
            read = dict(zip(used, read_columns(path, file, [names[place] for place in used]), strict=True))
            texts = {place: _texts(path, names[place], column).str.strip() for place, column in read.items()}
        empty = pandas.Series(np.full(file.metadata.num_rows, np.nan), dtype=str)
        missing = self._missing()
        held = {place: column.mask(column.isin(missing)) for place, column in texts.items()}
        return Cells(names, [held.get(place, empty) for place in range(len(names))], [path], [0])

    def _used(self, names: list[str]) -> list[int]:
        """The columns that may be label, owner or feature."""
        if self.features is None:
            dropped = [self._column("drop", one, names) for one in self.drop]
            return [place for place in range(len(names)) if place not in dropped]
        named = {
            "label": self._labels,
            "owner": () if self.owner is None else (self.owner,),
            "features": self.features,
        }
        return sorted({self._column(option, one, names) for option, ones in named.items() for one in ones})


def _texts(path: Path, name: str, column: Any) -> Texts:
    """A column of Arrow as texts, pandas.Series [n]; what is null, or NaN, is missing."""
    import pyarrow
    from pyarrow import compute, types

    column = spelled(path, name, column)
    kind = column.type
    if types.is_floating(kind):
        column = column.cast(pyarrow.float64())
        column = compute.if_else(compute.is_nan(column), None, column)
    elif not any(is_one(kind) for is_one in _plain()):
        fault = f"column {name!r} holds {kind}, no numbers or texts; leave it out by drop = [{name!r}]"
        raise InputError(PATH, str(path), fault)
    return column.cast(pyarrow.large_string()).to_pandas()


def _plain() -> list[Any]:
    """What tells types of Arrow whose values are one text each."""
    from pyarrow import types

    return [
        is_text,
        types.is_string_view,
        types.is_integer,
        types.is_boolean,
        types.is_decimal,
        types.is_date,
        types.is_timestamp,
        types.is_null,
    ]
