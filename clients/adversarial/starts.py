"""What an attack on a divergence must be able to do."""

from __future__ import annotations

from fedsim.client import Attack, InputError


def check_start(attack: Attack) -> None:
    """Refuse an attack that maximises something else, or that begins at the examples.

    There a divergence from the predictions for them has no slope.
    """
    if getattr(attack, "loss", "own") != "own":
        raise InputError("attack", attack.label, "it maximises the margin, and not what this defence says; take pgd")
    if not getattr(attack, "random_start", True):
        raise InputError(
            "attack.random_start", False, "at the examples themselves a divergence has no slope; set it to true"
        )
