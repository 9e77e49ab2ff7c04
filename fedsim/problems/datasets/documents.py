"""Texts that are not trusted, with labels and owners: from files of text, JSON, tables, Parquet and saved data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.data_files import TABLE, Array, DataFolder, reading, unpacked
from fedsim.core.errors import InputError
from fedsim.problems.datasets.arrow import PATH, is_text
from fedsim.problems.datasets.hub import (
    TESTS,
    TRAIN,
    Split,
    class_names,
    hold_whole,
    read_split,
    splits,
    text_array,
    values_of,
)

PACKED = (".gz", ".bz2", ".xz", ".zip")
JSON = (".json", ".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
HUB = (".parquet", ".arrow")


@dataclass(frozen=True)
class Fields:
    """What the fields, or columns, are called; None: there is none. Of files of text, what folder and file mean."""

    text: str
    label: str | None
    owner: str | None
    label_is_folder: bool
    owner_is_file: bool

    @property
    def labelled(self) -> bool:
        """Whether each text has a label."""
        return self.label is not None or self.label_is_folder


@dataclass(frozen=True)
class Documents:
    """Texts [n] with labels and owners, numbers or texts [n]; None: they have none.

    classes: what the numbers of labels are, if it is said. whole: each text is a file. files: that were read.
    """

    texts: list[str]
    labels: Array | None
    owners: Array | None
    classes: list[str]
    whole: bool
    files: Sequence[Path]


def read_documents(folder: DataFolder, path: str, fields: Fields, option: str = PATH) -> tuple[Documents, ...]:
    """The texts of a file, of those of a pattern, or of a folder; then those of a test set, if the folder has one."""
    places = folder.resolve_all(path, option)
    if len(places) == 1 and places[0].is_dir():
        texts = [place for place in sorted(places[0].rglob("*.txt")) if _seen(place.relative_to(places[0]))]
        if not texts:
            return _of_hub(splits(folder, path), fields)
        places = [folder.resolve(str(place), option) for place in texts]
    kinds = {_kind(place) for place in places}
    if len(kinds) > 1:
        raise InputError(option, path, f"has files of several kinds, {' and '.join(sorted(kinds))}; name those of one")
    kind = kinds.pop()
    if kind == ".parquet":
        return _of_hub({"": places}, fields)
    if kind == ".txt":
        return (_of_files(places, fields),)
    for name, given in (("label_is_folder", fields.label_is_folder), ("owner_is_file", fields.owner_is_file)):
        if given:
            raise InputError(f"{TABLE}.{name}", True, f"{places[0]} has many texts; name the field, or column, instead")
    parts = [(_of_json if kind == ".json" else _of_table)(place, fields) for place in places]
    return (_joined(parts, places),)


def _seen(place: Path) -> bool:
    return not any(part.startswith(".") for part in place.parts)


def _kind(place: Path) -> str:
    """One of .json, .csv, .parquet and .txt."""
    endings = [ending.lower() for ending in place.suffixes]
    ending = next((one for one in reversed(endings) if one not in PACKED), "")
    return next((kinds[0] for kinds in (JSON, TABLES, HUB) if ending in kinds), ".txt")


def _text(place: Path) -> str:
    content = unpacked(place, "text", PATH)
    if not content:
        raise InputError(PATH, str(place), "is empty; remove it")
    with reading(place, "text of UTF-8", PATH):
        return content.decode("utf-8-sig")


def _of_files(places: Sequence[Path], fields: Fields) -> Documents:
    """Each file is one text."""
    for option, given in (("label", fields.label), ("owner", fields.owner)):
        if given is not None:
            remedy = "label_is_folder" if option == "label" else "owner_is_file"
            fault = f"{places[0]} is a text without fields; leave it out, or say {remedy} = true"
            raise InputError(f"{TABLE}.{option}", given, fault)
    labels = np.array([place.parent.name for place in places]) if fields.label_is_folder else None
    stems = [place.stem for place in places]
    unlike = len(set(stems)) == len(stems)
    owners = np.array(stems if unlike else list(map(str, places))) if fields.owner_is_file else None
    return Documents([_text(place) for place in places], labels, owners, [], True, places)


def _of_json(place: Path, fields: Fields) -> dict[str, list[Any]]:
    """The fields of the objects in a file, one a line, or all in one list."""
    text = _text(place)
    with reading(place, "JSON", PATH):
        found = json.loads(text) if text.lstrip().startswith("[") else list(map(json.loads, text.splitlines()))
        if not all(isinstance(one, dict) for one in found):
            raise ValueError("it is no list of objects, and has no object in each line")
    known = list(dict.fromkeys(key for one in found[:20] for key in one))
    return _chosen(place, {name: [one.get(name) for one in found] for name in _wanted(fields)}, known, fields)


def _of_table(place: Path, fields: Fields) -> dict[str, list[Any]]:
    """The columns of a table of text; what is empty is missing."""
    from fedsim.problems.datasets.cells import Writing, read_cells

    writing = Writing(delimiter=None, header=True, encoding=None, comment=None, missing=("",))
    cells = read_cells([place], writing)
    held = dict(zip(cells.names, cells.columns, strict=True))
    columns = {name: held[name].tolist() if name in held else [None] * len(cells) for name in _wanted(fields)}
    return _chosen(place, columns, cells.names, fields)


def _wanted(fields: Fields) -> list[str]:
    return [name for name in (fields.text, fields.label, fields.owner) if name is not None]


def _chosen(place: Path, held: dict[str, list[Any]], known: list[str], fields: Fields) -> dict[str, list[Any]]:
    """The values of the fields that are wanted. InputError: one is missing, or is neither text nor number."""
    if not held[fields.text]:
        raise InputError(PATH, str(place), "there is no text in this file")
    columns = {}
    for option, name in (("text", fields.text), ("label", fields.label), ("owner", fields.owner)):
        if name is None:
            continue
        if name not in known:
            fault = f"no text of {place} has such a field; there are {', '.join(known[:20])}"
            raise InputError(f"{TABLE}.{option}", name, fault)
        kinds = (str,) if option == "text" else (str, int, float)
        for row, value in enumerate(held[name], start=1):
            if not isinstance(value, kinds) or value != value:
                wanted = "no text" if option == "text" else "neither a text nor a number"
                raise InputError(PATH, str(place), f"{name} is {wanted} in row {row}: {str(value)[:40]!r}")
        columns[option] = held[name]
    return columns


def _joined(parts: Sequence[dict[str, list[Any]]], places: Sequence[Path]) -> Documents:
    columns = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    labels, owners = (_values(columns.get(name), places[0]) for name in ("label", "owner"))
    return Documents(columns["text"], labels, owners, [], False, places)


def _values(values: list[Any] | None, place: Path) -> Array | None:
    """Texts or numbers as an array, [n]; of both kinds, as texts."""
    if values is None:
        return None
    if all(isinstance(value, int | float) for value in values):
        return np.array(values)
    return text_array(list(map(str, values)), place)


def _of_hub(found: dict[str, list[Path]], fields: Fields) -> tuple[Documents, ...]:
    """The texts of a saved data set: all, or those of the splits for training and test."""
    for option, given in (("label_is_folder", fields.label_is_folder), ("owner_is_file", fields.owner_is_file)):
        if given:
            raise InputError(f"{TABLE}.{option}", True, "a file has many texts; name the column instead")
    chosen = [found[name] for name in ("", TRAIN) if name in found]
    if not chosen:
        files = next(iter(found.values()))
        raise InputError(
            PATH, str(files[0]), f"there is no split {TRAIN}, only {', '.join(found)}; name the files of one"
        )
    chosen += [found[name] for name in [one for one in TESTS if one in found][:1] if TRAIN in found]
    return tuple(_of_split(read_split(files, _wanted(fields)), fields) for files in chosen)


def _of_split(split: Split, fields: Fields) -> Documents:
    column = split.columns[fields.text]
    if not is_text(column.type):
        raise InputError(f"{TABLE}.text", fields.text, f"holds {column.type} in {split.files[0]}, no texts")
    hold_whole(split, fields.text, column)
    labels, owners = (None if name is None else values_of(split, name) for name in (fields.label, fields.owner))
    classes = [] if fields.label is None else class_names(split, fields.label)
    return Documents(column.to_pylist(), labels, owners, classes, False, split.files)
