"""What every option of an algorithm keeps to: a function for each promise, AssertionError where it is broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fedsim.core.errors import InputError
from fedsim.testing.others import Other, others_of
from fedsim.testing.subject import Course, Path, Subject, part_ways

LONGER = {"rounds": 3}
"""Some options matter only where what they change is asked for again."""


def every_option_moves_something(subject: Subject, path: Path, option: str, other: Other | None = None) -> None:
    """Another value of an option of the plug-in at a path gives another run.

    other: the value, and what it needs to matter; by default, values that go with its type are tried.
    """
    plugin, tried = subject.part(path), list[str]()
    for value, needs in [other] if other is not None else others_of(plugin, option):
        base = _given(replace(subject, tables=LONGER | dict(subject.tables)), path, needs)
        try:
            if part_ways(base.course(), Course(base.altered(path, {option: value}).simulation())):
                return
            tried.append(repr(value))
        except InputError as error:
            if other is not None:
                raise
            tried.append(f"{value!r}, which is refused ({error})")
    name = f"{'.'.join((*path, option))} = {getattr(plugin, option)!r}"
    if other is not None:
        raise AssertionError(f"{name}: with {tried[0]} in its place the run is the same")
    raise AssertionError(
        f"{name}: no other value was found that changes the run; name one in `others`, with what it needs to matter "
        f"(tried {', '.join(tried) or 'none'})"
    )


def an_option_that_is_refused(subject: Subject, path: Path, option: str, other: Other | None = None) -> None:
    """An option that a plug-in has from others and cannot use takes no other value."""
    plugin = subject.part(path)
    for value, needs in [other] if other is not None else others_of(plugin, option):
        try:
            subject.altered(path, {**needs, option: value}).part(path)
        except InputError:
            continue
        raise AssertionError(f"{'.'.join((*path, option))} = {value!r} is not refused")


def what_crosses_otherwise_changes_nothing_else(subject: Subject, path: Path, option: str, other: Other) -> None:
    """An option about how numbers cross changes the bytes that are counted, and the run by rounding at most."""
    value, needs = other
    base = _given(subject, path, needs)
    one, two = base.simulation(), base.altered(path, {option: value}).simulation()
    bytes_differ = False
    for row, changed in zip(one, two, strict=True):
        bytes_differ |= any(row[name] != changed[name] for name in ("bytes_up", "bytes_down"))
        if "train_loss" in row:  # which a round need not have in which nothing is known yet
            assert abs(row["train_loss"] - changed["train_loss"]) <= 1e-9 * abs(row["train_loss"])
    assert bytes_differ, f"{option} = {value!r} changes no number of bytes"
    assert torch.allclose(one.state.params, two.state.params, rtol=0, atol=1e-12), f"{option} changes the run"


def what_is_reported_changes_nothing_else(subject: Subject, path: Path, option: str, other: Other) -> None:
    """An option about what is reported adds to the rows, or calls something otherwise, and changes no bit."""
    value, needs = other
    base = _given(subject, path, needs)
    one, two = base.simulation(), base.altered(path, {option: value}).simulation()
    for row, told in zip(one, two, strict=True):
        assert {**told, **row} == {**told, "wall": row["wall"]}, f"{option} = {value!r} changes what else is reported"
    assert torch.equal(one.state.params, two.state.params), f"{option} = {value!r} changes the run"


def _given(subject: Subject, path: Path, needs: Mapping[str, Any]) -> Subject:
    """The subject with what an option of the plug-in at a path needs to matter."""
    own = {field.name for field in dataclasses.fields(subject.part(path))}
    tables = {name: setting for name, setting in needs.items() if name not in own}
    values_only = bool(tables.pop("values_only", subject.values_only))
    beside = {name: setting for name, setting in needs.items() if name in own}
    return replace(subject.altered(path, beside, **tables), values_only=values_only)
