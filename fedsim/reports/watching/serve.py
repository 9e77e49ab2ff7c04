"""The server of `fedsim watch`."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from fedsim.core.errors import InputError, warn
from fedsim.core.files import look
from fedsim.reports.watching.app import LOOPBACK, Hosts, Watch
from fedsim.reports.watching.pages import Pages
from fedsim.reports.watching.shelf import Shelf

LOG = logging.getLogger("uvicorn.error")


class _Server(uvicorn.Server):
    """A server that ends at once, and says nothing of those whom it has left without an answer."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        LOG.disabled = True
        await super().shutdown(sockets)


@dataclass(frozen=True)
class Served:
    """A server that listens, and answers when it is run. address: as a browser is given it."""

    address: str
    listening: socket.socket
    server: uvicorn.Server

    def run(self) -> None:
        """Answer until Ctrl-C, or until `server.should_exit`."""
        with self.listening, suppress(KeyboardInterrupt):
            self.server.run([self.listening])


def serve(root: Path, host: str, port: int) -> Served:
    """Listen for who wants to see the runs below a folder; with a warning, where that is not this machine alone.

    port: 0: any that is free. InputError: there is no such folder, or nothing can listen at this host and port.
    """
    found = look(root, "folder")
    if found is None or not root.is_dir():
        raise InputError("folder", str(root), "there is no such folder; name one that runs are in")
    listening = _listen(host, port)
    address, number = listening.getsockname()[:2]
    name = f"[{address}]" if ":" in address else address
    if not ip_address(address).is_loopback:
        warn(f"whoever reaches {name}:{number} reads what the runs in {root} have noted")
    LOG.setLevel(logging.ERROR)
    LOG.disabled = False  # after an earlier server in this process
    config = uvicorn.Config(
        Watch(Shelf(root), Pages().draw, hosts_of(host, address)),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=0,
    )
    return Served(f"http://{name}:{number}/", listening, _Server(config))


def hosts_of(host: str, address: str) -> Hosts:
    """What a server may be called that listens at this address, for which its user wrote `host`."""
    number = ip_address(address)
    if number.is_loopback:
        return Hosts(LOOPBACK | {host.lower(), address})
    own = frozenset({host.lower(), address, socket.gethostname().lower()})
    return Hosts(own | LOOPBACK, by_address=True) if number.is_unspecified else Hosts(own)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise InputError("host", host, "is no name or address of this machine; 127.0.0.1 is for it alone") from error
    try:
        return socket.create_server(address, family=family)
    except OSError as error:
        said = os.strerror(error.errno or 0).lower()  # create_server adds the address, which is said here
        raise InputError("port", port, f"{host} has it not: {said}; choose another, or 0") from error
