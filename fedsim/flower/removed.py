"""What Flower had and has removed: old apps that import it are told which version to run with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version

_NAMES: Mapping[str, str] = {
    "1.8": """
        flwr.client.run_client_app flwr.server.run_driver_api flwr.server.run_fleet_api flwr.server.run_server_app
        flwr.server.run_superlink flwr.server.start_driver flwr.simulation.run_simulation_from_cli
    """,
    "1.16": """
        flwr.client.mod.parameters_size_mod flwr.common.ConfigsRecordValues flwr.common.MetricsRecordValues
        flwr.common.recordset_compat flwr.common.typing.ConfigsRecordValues flwr.common.typing.ConfigsScalar
        flwr.common.typing.ConfigsScalarList flwr.common.typing.MetricsRecordValues flwr.common.typing.MetricsScalar
        flwr.common.typing.MetricsScalarList flwr.server.compat.driver_client_proxy flwr.server.driver
    """,
    "1.18": "flwr.common.exit_handlers",
    "1.22": "flwr.common.auth_plugin flwr.common.heartbeat",
    "1.24": """
        flwr.common.address flwr.common.date flwr.common.pyproject flwr.common.typing.UserConfigValue
        flwr.common.version
    """,
    "1.26": "flwr.common.inflatable flwr.common.inflatable_protobuf_utils flwr.common.inflatable_utils",
    "1.30": """
        flwr.common.context flwr.common.message flwr.common.record flwr.common.typing.ConfigRecordValues
        flwr.common.typing.ConfigScalar flwr.common.typing.ConfigScalarList flwr.common.typing.MetricRecordValues
        flwr.common.typing.MetricScalar flwr.common.typing.MetricScalarList flwr.server.grid flwr.server.server_app
    """,
    "1.31": """
        flwr.common.differential_privacy flwr.common.differential_privacy_constants flwr.common.dp flwr.common.exit
        flwr.common.grpc flwr.common.object_ref flwr.common.parameter flwr.common.recorddict_compat
        flwr.common.retry_invoker flwr.common.telemetry flwr.common.typing.Fab flwr.common.typing.Run
        flwr.common.typing.RunNotRunningException flwr.common.typing.RunStatus flwr.common.typing.UserConfig
        flwr.server.serverapp_components flwr.server.typing flwr.simulation.is_ray_installed
    """,
    "1.32": "flwr.server.app flwr.server.serverapp flwr.server.utils.tensorboard",
}
"""Modules, and names in modules, by the newest version that is known to have them."""
REMOVED: Mapping[str, str] = {name: had for had, names in _NAMES.items() for name in names.split()}
"""A version of Flower that has it, by what is missing."""
_FROM = re.compile(r"cannot import name '(\w+)' from '([\w.]+)'")


def removed(error: BaseException) -> str:
    """Which part of Flower that is gone an import has failed for, and which version has it; empty where none."""
    name = ""
    if isinstance(error, ModuleNotFoundError):
        name = error.name or ""
    elif isinstance(error, ImportError) and (found := _FROM.search(str(error))):
        name = f"{found[2]}.{found[1]}"
    had = REMOVED.get(name)
    return "" if had is None else f"Flower {version('flwr')} has no {name}; Flower {had} has it"
