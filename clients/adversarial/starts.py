"""Where an attack on a divergence may begin."""

from __future__ import annotations

from fedsim.adversarial.attack import Attack
from fedsim.errors import InputError


def check_start(attack: Attack) -> None:
    """Refuse an attack that begins at the examples: a divergence from the predictions there has no slope there."""
    if not getattr(attack, "random_start", True):
        raise InputError(
            "attack.random_start", False, "at the examples themselves a divergence has no slope; set it to true"
        )
