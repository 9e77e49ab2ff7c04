"""What the configuration of a node has, one text for all nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fedsim.core.errors import InputError
from fedsim.flower.names import PARTITION, PARTITIONS

PLACE = re.compile(r"\{" + PARTITION + r"(:[^{}]*)?\}")
"""Where a partition's number goes in a text, and how it is written: `{partition-id}`, `{partition-id:03}`."""


def configuration(entries: Mapping[str, Any], partition: int, nodes: int) -> dict[str, Any]:
    """The configuration of a partition's node: what each has, and `entries`, the partition's number in its places.

    InputError: an entry is not the user's to give, is no value that Flower has there, or cannot be written.
    """
    made: dict[str, Any] = {PARTITION: partition, PARTITIONS: nodes}
    for name, value in entries.items():
        option = f"node-config.{name}"
        if name in made:
            raise InputError(option, value, "partitions are numbered here; leave it out")
        if not isinstance(value, bool | int | float | str):
            raise InputError(option, value, "write a text, a number, true or false")
        if isinstance(value, str) and any(re.search(r"\d{4}", found[1] or "") for found in PLACE.finditer(value)):
            raise InputError(option, value, "a partition's number is written in 999 digits at most")
        try:
            made[name] = (
                PLACE.sub(lambda found: format(partition, (found[1] or ":")[1:]), value)
                if isinstance(value, str)
                else value
            )
        except ValueError as error:
            raise InputError(option, value, f"the place of the partition's number cannot be written: {error}") from None
    return made
