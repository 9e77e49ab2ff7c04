"""What the clients' machines are like: how fast they compute and send, when they can start, and whether they fail."""

from fedsim.devices.census import Census
from fedsim.devices.fleet import Devices, Fleet

__all__ = ["Census", "Devices", "Fleet"]
