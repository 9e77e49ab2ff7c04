"""A person's own data: a table in a CSV file, or in several; what tables of other files share with it."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedsim.core.data_files import TABLE, Array, DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, PositiveInt, options
from fedsim.problems.datasets.base import SHARE, Classes, Dataset, Indices, Task, hold_counted, hold_unsplit, split_off

if TYPE_CHECKING:
    from fedsim.problems.datasets.cells import Cells, Texts

PATH = f"{TABLE}.path"
Encoding = Literal["one_hot", "ordinal", "hash"]
Columns = Annotated[tuple[str | int, ...], Field(strict=False)]
"""Columns by their names or places; a TOML array."""
Markers = Annotated[tuple[str, ...], Field(strict=False)]
HASH_COLUMNS = 16
UNNAMED = "Unnamed: 0"
"""How pandas calls a column without a name when it reads one, and then writes it."""
ROWS = ("id", "index", "no", "row", "row_id", "rowid", "rownames")
"""What a column of the numbers of rows is called, in small letters."""


@options
class Table(ABC):
    """A table with one column for the label, and perhaps one for the owner; a kind of file is a class of it."""

    path: str
    """The file; absolute, or below the current or the data folder. `sites/*` are several with the same columns."""
    label: str | int | Columns
    """The label's column: its name, or its place from 0 (-1 is the last). Several are numbers, or tags."""
    owner: str | int | None = None
    """The owner's column: its name or place. Not given: nobody owns examples."""
    owner_is_file: bool = False
    """Each file is what one owner has."""
    features: Columns | None = None
    """The columns that are learned from. Not given: all others."""
    drop: Columns = ()
    """Columns that are left out."""
    numbers: Columns = ()
    """Columns that are numbers in spite of leading zeros or of more than 15 digits; others of such are taken for codes.
    """
    encode: Encoding | dict[str, Encoding] | None = None
    """How columns of texts become numbers: one_hot: a column of 0 and 1 for each text; ordinal: the text's place in
    their order; hash: `hash_columns` of them. For all, or a table by column, which may name columns of numbers too. Not
    given: texts are refused.
    """
    hash_columns: PositiveInt = HASH_COLUMNS
    """Into how many numbers hash encodes a column."""
    missing: Literal["refuse", "drop", "fill"] = "refuse"
    """What becomes of an example of which something is missing: refuse the table; drop the example; fill in the mean of
    the training examples, and for texts one that means missing (labels and owners are never filled in).
    """
    missing_values: Markers | None = None
    """The texts that mean a missing value, beside the empty one. Not given: those of pandas (NA, N/A, nan, null, None
    and so on), and ?.
    """
    label_ending: str = ""
    """An ending that is taken off labels, such as the dot of a published test file."""
    merge: dict[str, Markers] | None = None
    """Labels that are one class, under its name, as in { ill = ["1", "2"] }. Not given: each is one."""
    task: Task = "classification"
    """classification numbers the distinct labels in their order from 0; regression takes them as numbers, of whole ones
    too; tags are columns of 0 and 1, or of true and false.
    """
    num_classes: Classes | None = None
    """K, where labels are class numbers 0 .. K-1 already, of which not all need occur. Not given: the distinct labels
    are numbered.
    """
    test_path: str | None = None
    """The file, or files, of the test examples, with the same columns. Not given: `test_share` are split off."""
    test_share: Fraction = SHARE
    """Share that is the test set, of each owner, or else of each class, where no file is."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set then; it does not follow the run's seed."""
    standardize: bool = True
    """Shift and scale each number by the mean and deviation of the training examples, in double precision."""

    def __post_init__(self) -> None:
        if self.owner is not None and self.owner_is_file:
            raise InputError("owner_is_file", True, "owner names a column already; leave one of the two out")
        encodings = set(self.encode.values()) if isinstance(self.encode, dict) else {self.encode}
        if not encodings:
            raise InputError("encode", "{}", "names no column; leave it out")
        if self.hash_columns != HASH_COLUMNS and "hash" not in encodings:
            raise InputError("hash_columns", self.hash_columns, "nothing is encoded by hash; leave it out")
        if self.merge and self.task != "classification":
            raise InputError("merge", str(self.merge), f"the labels of {self.task} are no classes; leave it out")
        if self.features is not None and self.drop:
            raise InputError("drop", list(self.drop), "features says which columns are used; leave one of the two out")
        hold_counted(self.num_classes, self.task)
        several = isinstance(self.label, tuple)
        if several and (self.task == "classification" or not self.label):
            remedy = 'one column has the classes; those of several numbers or tags need task = "regression" or "tags"'
            raise InputError("label", list(self._labels), remedy)
        if self.task == "tags" and not several:
            raise InputError("task", self.task, "name the columns of the tags: label = [...]")

    @property
    def _labels(self) -> tuple[str | int, ...]:
        """The columns of the labels."""
        return self.label if isinstance(self.label, tuple) else (self.label,)

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, features], in the order of the file's columns; what is fitted knows no test example."""
        # pandas and scikit-learn, which take their time to be imported
        from fedsim.problems.datasets.cells import appended
        from fedsim.problems.datasets.features import Treatment, features, hold_complete, treated

        paths = self._files(folder, self.path, PATH)
        cells = self._read(paths)
        labels = [self._column("label", one, cells.names) for one in self._labels]
        if len(set(labels)) < len(labels):
            raise InputError(f"{TABLE}.label", list(self._labels), "names a column twice; name each once")
        owned = None if self.owner is None else self._column("owner", self.owner, cells.names)
        chosen = self._features(cells, labels if owned is None else [*labels, owned])
        training = len(cells)
        if self.test_path is not None:
            hold_unsplit(self.test_share, "test_path names")
            tests = self._files(folder, self.test_path, f"{TABLE}.test_path")
            trained = {path.resolve() for path in paths}
            both = next((path for path in tests if path.resolve() in trained), None)
            if both is not None:
                fault = f"{both} is trained on, too; leave it out of one of path and test_path"
                raise InputError(f"{TABLE}.test_path", self.test_path, fault)
            cells = appended(cells, self._read(tests), [*labels, *chosen])
        rows = np.arange(len(cells))
        if self.missing == "drop":
            needed = [*labels, *chosen, *([] if owned is None else [owned])]
            rows = np.flatnonzero(~np.any([cells.columns[column].isna() for column in needed], axis=0))
            training = int(np.searchsorted(rows, training))
            for count, option, path in (
                (training, "path", paths[0]),
                (len(rows) - training, "test_path", cells.paths[-1]),
            ):
                if not count and (option == "path" or self.test_path is not None):
                    fault = f"something is missing in every row of {path}{_empty(cells, needed)}"
                    raise InputError(f"{TABLE}.missing", self.missing, fault)
            cells = cells.taken(rows)
        y, classes = self._targets(cells, labels, training)
        owner, owners = self._owners(cells, owned, paths, training)
        how = Treatment(
            decimal=self._decimals(),
            numbers=[cells.names[self._column("numbers", one, cells.names)] for one in self.numbers],
            encode=self.encode,
            hash_columns=self.hash_columns,
            standardize=self.standardize,
        )
        wanted = features(cells, chosen, how)
        if self.missing == "refuse":
            hold_complete(cells, wanted)
        if self.test_path is None:
            strata = owner if owner is not None else (y if classes else None)
            train, test = split_off(strata, training, self.test_share, self.split_seed)
        else:
            train, test = np.arange(training), np.arange(training, len(cells))
        x, x_test, told = treated(cells, wanted, train, test, how)
        owner_test = None if owner is None or (owner[test] < 0).any() else owner[test]
        return Dataset(
            paths[0].stem if len(paths) == 1 else paths[0].parent.name,
            x,
            y[train],
            x_test,
            y[test],
            len(classes),
            None if owner is None else owner[train],
            owner_test,
            told={"features": told, "classes": classes or self._tags(cells, labels), "owners": owners},
            drawn=self.test_path is None,
            tags=self.task == "tags",
        )

    def _files(self, folder: DataFolder, path: str, option: str) -> list[Path]:
        """The files that a path, or a pattern, is of."""
        return folder.resolve_all(path, option)

    @abstractmethod
    def _read(self, paths: Sequence[Path]) -> Cells:
        """The cells of files that have the same columns. InputError: one of them is damaged, or has other columns."""

    def _missing(self) -> Sequence[str]:
        """The texts that mean a missing value."""
        from fedsim.problems.datasets.cells import MISSING

        return MISSING if self.missing_values is None else ("", *(mark.strip() for mark in self.missing_values))

    def _decimals(self) -> str:
        """What is before the decimals of a number."""
        return "."

    def _column(self, option: str, wanted: str | int, names: Sequence[str]) -> int:
        if isinstance(wanted, int):
            if not -len(names) <= wanted < len(names):
                raise InputError(f"{TABLE}.{option}", wanted, f"the table has {len(names)} columns")
            return wanted % len(names)
        if names.count(wanted) != 1:
            known = f"not the name of one column; the table has {', '.join(names[:20])}"
            raise InputError(f"{TABLE}.{option}", wanted, known)
        return names.index(wanted)

    def _features(self, cells: Cells, taken: list[int]) -> list[int]:
        """The columns that are learned from."""
        path = str(cells.paths[0])
        if self.features is not None:
            chosen = [self._column("features", one, cells.names) for one in self.features]
            for place in chosen:
                if place in taken or chosen.count(place) > 1:
                    fault = "is the label, the owner, or named twice; name each feature once"
                    raise InputError(f"{TABLE}.features", cells.names[place], fault)
        else:
            dropped = [self._column("drop", one, cells.names) for one in self.drop]
            for place in dropped:
                if place in taken or dropped.count(place) > 1:
                    fault = "is the label or the owner, no feature anyway, or named twice; leave it out"
                    raise InputError(f"{TABLE}.drop", cells.names[place], fault)
            left = {*taken, *dropped}
            chosen = [column for column in range(len(cells.names)) if column not in left]
            chosen = [column for column in chosen if not self._counts_rows(cells, column)]
        if not chosen:
            raise InputError(PATH, path, "the table has no column besides label and owner")
        return sorted(chosen)

    def _counts_rows(self, cells: Cells, column: int) -> bool:
        """Whether a column without a name names the rows or is empty. InputError: not so, or one counts the rows."""
        name, texts = cells.names[column], cells.columns[column]
        texts = texts.iloc[: cells.begins[1] if len(cells.begins) > 1 else None]
        if _unnamed(name):
            if texts.isna().all() or (all(map(_unnamed, cells.names[:column])) and texts.is_unique):
                return True
            fault = f"column {column} has no name; give it one, or leave it out by drop = [{column}]"
            raise InputError(PATH, str(cells.paths[0]), fault)
        counted = ([str(first + row) for row in range(len(texts))] for first in (0, 1))
        if name.lower() in ROWS and texts.tolist() in counted:
            fault = f"column {name!r} counts the rows; leave it out by drop = [{name!r}]"
            raise InputError(PATH, str(cells.paths[0]), f"{fault}, or name all that is learned from by features")
        return False

    def _tags(self, cells: Cells, labels: list[int]) -> list[str]:
        """What the tags are called."""
        return [cells.names[label] for label in labels] if self.task == "tags" else []

    def _targets(self, cells: Cells, labels: list[int], training: int) -> tuple[Array, list[str]]:
        """Return classes int64 [rows] and their names, or float32 numbers [rows] or [rows, k] or tags, and none."""
        if self.task == "classification":
            return self._classes(cells, labels[0], training)
        columns = [self._numbers(cells, label) for label in labels]
        return np.stack(columns, axis=1) if isinstance(self.label, tuple) else columns[0], []

    def _written(self, cells: Cells, label: int) -> Texts:
        """What stands in a column of labels, of which none is missing."""
        from fedsim.problems.datasets.cells import first_of

        name, texts = cells.names[label], cells.columns[label]
        if texts.isna().any():
            row = first_of(texts.isna().to_numpy())
            raise cells.fault(
                row, f'column {name!r} has no value in row {cells.number(row)}; remove it, or say missing = "drop"'
            )
        if self.label_ending:
            ended = texts.str.endswith(self.label_ending) & (texts.str.len() > len(self.label_ending))
            if not ended.any():
                raise InputError(f"{TABLE}.label_ending", self.label_ending, f"no label in column {name!r} ends so")
            texts = texts.where(~ended, texts.str.removesuffix(self.label_ending))
        return texts

    def _numbers(self, cells: Cells, label: int) -> Array:
        """Return float32 [rows], numbers or 0 and 1."""
        from fedsim.problems.datasets.cells import as_numbers, first_of

        name, texts = cells.names[label], self._written(cells, label)
        values, wrong, _ = as_numbers(texts, self._decimals())
        with np.errstate(over="ignore"):
            single = values.astype(np.float32)
        wrong |= ~np.isfinite(single) if self.task == "regression" else ~np.isin(values, (0, 1))
        if wrong.any():
            row, what = first_of(wrong), "not a number" if self.task == "regression" else "neither 0 nor 1"
            fault = f"row {cells.number(row)}, column {name!r}, has {texts.iloc[row]!r}, which is {what}"
            raise cells.fault(row, fault)
        return single

    def _classes(self, cells: Cells, label: int, training: int) -> tuple[Array, list[str]]:
        """Return classes int64 [rows] and their names."""
        from fedsim.problems.datasets.cells import as_numbers, first_of
        from fedsim.problems.datasets.labels import in_order, no_classes, places

        name, texts = cells.names[label], self._written(cells, label)
        for merged, ones in (self.merge or {}).items():
            absent = sorted(set(ones) - set(texts))
            if absent or not ones:
                fault = f"no label in column {name!r} is {absent[0]!r}" if absent else f"{merged!r} has no label"
                raise InputError(f"{TABLE}.merge", merged, f"{fault}; leave it out")
            texts = texts.where(~texts.isin(ones), merged)
        values, wrong, _ = as_numbers(texts, self._decimals())
        if self.num_classes is not None:
            wrong |= ~np.isin(values, np.arange(self.num_classes))
            if wrong.any():
                row = first_of(wrong)
                where = f"row {cells.number(row)}, column {name!r}, has {texts.iloc[row]!r}"
                raise cells.fault(row, f"{where}, which is none of the classes 0 .. {self.num_classes - 1}")
            return values.astype(np.int64), [str(one) for one in range(self.num_classes)]
        if wrong.any():  # prices with a decimal comma are no names, either
            values, wrong, _ = as_numbers(texts, "," if self._decimals() == "." else ".")
        written = texts.to_numpy(dtype=object)
        reason = no_classes(written[:training] if wrong.any() else values[:training])
        if reason is not None:
            raise InputError(PATH, str(cells.paths[0]), f"column {name!r} {reason}")
        classes = in_order(written[:training])
        self._hold_spelling(cells, name, classes)
        codes = places(written, classes)
        if (codes < 0).any():
            row = first_of(codes < 0)
            where = f"row {cells.number(row)}, column {name!r}"
            raise cells.fault(row, f"{where}, has {texts.iloc[row]!r}, which is the label of no training example")
        return codes, classes

    def _hold_spelling(self, cells: Cells, name: str, distinct: list[str]) -> None:
        """Refuse what is a whole number here and has decimals there, which is rather one than two."""
        for text in distinct:
            whole = re.sub(r"\.0+$", "", text)
            if whole != text and whole in distinct:
                fault = f"column {name!r} has {whole!r} and {text!r}, which are one number; write them alike"
                raise InputError(PATH, str(cells.paths[0]), fault)

    def _owners(
        self, cells: Cells, owned: int | None, paths: Sequence[Path], training: int
    ) -> tuple[Indices | None, list[str]]:
        """Return the owners of all rows, -1 for those of a test file who have no training example, and their names."""
        from fedsim.problems.datasets.cells import first_of
        from fedsim.problems.datasets.labels import in_order, places

        if owned is not None:
            name, texts = cells.names[owned], cells.columns[owned]
            if texts.isna()[:training].any():
                row = first_of(texts.isna().to_numpy())
                raise cells.fault(row, f"column {name!r} has no value in row {cells.number(row)}")
            written = texts.to_numpy(dtype=object)
        elif self.owner_is_file:
            names = [path.stem for path in paths]
            if len(set(names)) < len(names):
                names = [str(path.relative_to(os.path.commonpath(paths))) for path in paths]
            written = cells.by_file([*names, *(path.stem for path in cells.paths[len(names) :])])
        else:
            return None, []
        owners = in_order(written[:training])
        self._hold_spelling(cells, "the files" if owned is None else cells.names[owned], owners)
        codes = places(written, owners)
        strange = codes < 0
        if strange.any() and not strange[training:].all():
            row = first_of(strange)
            raise cells.fault(
                row, f"row {cells.number(row)} is a test example of {written[row]!r}, who has no training example"
            )
        return codes, owners


@options
class CSV(Table):
    """A table of text."""

    path: str
    """The file, packed (gzip, bzip2, xz, zip) or not; absolute, or below the current or the data folder. `sites/*.csv`
    are several with the same columns.
    """
    header: bool | None = None
    """The first row has the columns' names. Not given: it has, and is refused if one is a number or comes twice."""
    delimiter: str | None = None
    r"""What is between two columns: one character, or `\s+` for blanks. Not given: found (comma, semicolon, tab, bar or
    blanks).
    """
    encoding: str | None = None
    """Of the text, such as latin-1. Not given: as the first bytes of the file say, or else UTF-8."""
    decimal: Literal[".", ","] = "."
    """What is before the decimals of a number."""
    comment: str | None = None
    """A character after which the rest of a line says nothing."""

    def __post_init__(self) -> None:
        if self.delimiter is not None and len(self.delimiter) != 1 and self.delimiter != r"\s+":
            raise InputError("delimiter", self.delimiter, r"give one character, or \s+ for blanks")
        if self.delimiter is not None and self.delimiter in '"\r\n\0':
            raise InputError("delimiter", self.delimiter, "this character has a meaning of its own in a table")
        if self.comment is not None and len(self.comment) != 1:
            raise InputError("comment", self.comment, "give one character")
        for option, given in (("delimiter", self.delimiter), ("comment", self.comment)):
            if given is not None and not given.isascii():
                raise InputError(option, given, "give a character of ASCII")
        if self.comment is not None and self.comment == self.delimiter:
            raise InputError("comment", self.comment, "delimiter is the same; leave one of the two out")
        if self.encoding is not None:
            try:
                " ".encode(self.encoding)
            except (LookupError, ValueError) as error:
                raise InputError("encoding", self.encoding, "Python knows no such encoding of text") from error
        super().__post_init__()

    def _read(self, paths: Sequence[Path]) -> Cells:
        from fedsim.problems.datasets.cells import Writing, read_cells

        writing = Writing(
            delimiter=self.delimiter,
            header=self.header,
            encoding=self.encoding,
            comment=self.comment,
            missing=self._missing(),
        )
        return read_cells(paths, writing)

    def _decimals(self) -> str:
        return self.decimal


def _unnamed(name: str) -> bool:
    return name == "" or name.startswith(UNNAMED)


def _empty(cells: Cells, needed: Sequence[int]) -> str:
    """Which of the columns is always missing, in words; nothing, if none is."""
    names = [cells.names[column] for column in needed if cells.columns[column].isna().all()]
    return f": column {names[0]!r} has no value at all; leave it out by drop" if names else ""
