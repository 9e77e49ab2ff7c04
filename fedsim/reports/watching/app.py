"""Answers to a browser: the list of runs, and pages of them. It reads, and only what was found below its folder.

    /                        the list
    /runs/                   a page of all runs
    /runs/sweep-0/lr=0.1     a page of the run in this place, or of those below it
    /compare?run=a&run=b     a page of some

An address is looked up among the places of runs that were found; nothing of it is ever opened. A page is told by what
its files were when it was made, so who asks for what has not changed is told so (304), and nothing is read.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from fedsim.core.errors import FedsimError
from fedsim.core.files import reason
from fedsim.reports.page.document import policy
from fedsim.reports.watching.desk import Desk
from fedsim.reports.watching.index import index, index_policy
from fedsim.reports.watching.shelf import Line, Search, Shelf

KEPT = 6
"""Pages that are remembered; each has several MB."""
PAUSE = 4
"""So many times as long as a page took to be made it is not made anew: the cores are there for the runs."""
MOST = 2**26
"""Bytes of rows that a page shows at most: more would have to be read again with each new one."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Hosts:
    """What a server may be called by those who ask it.

    A page of elsewhere whose name leads to this machine would be called by that name: it must not read what is here.
    Addresses are nobody's name.

    names: those it has, in small letters. by_address: whether it may be called by any address, too.
    """

    names: frozenset[str] = LOOPBACK
    by_address: bool = False

    def has(self, given: Sequence[str]) -> bool:
        """Whether the Host headers of a request, of which there must be one, are about this server."""
        try:
            (one,) = given
            name = urlsplit(f"//{one}").hostname or ""
        except ValueError:
            return False
        return name in self.names or (self.by_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class _Made:
    """A page: of which state of the runs, its bytes, and until when it is not made anew."""

    tag: str
    content: bytes
    until: float


class Watch:
    """The application. draw: makes a page of runs, and of the search that they are of."""

    def __init__(self, shelf: Shelf, draw: Callable[[Sequence[Line], Search | None], str], hosts: Hosts) -> None:
        self._shelf, self._draw, self._hosts = shelf, draw, hosts
        self._looking, self._drawing = Desk(), Desk()
        self._made: OrderedDict[str, _Made] = OrderedDict()
        self._began = time.time()  # a later version may show the same runs in another way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope)
        response = await self._answer(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if request.method == "HEAD":
            response.body = b""
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if not self._hosts.has(request.headers.getlist("host")):
            return _line(421, "this server is not called so; ask it by the address that fedsim watch has printed")
        if request.method not in ("GET", "HEAD"):
            return _line(405, "this server only shows", Allow="GET, HEAD")
        path = quote(unquote_to_bytes(request.scope["raw_path"]))
        try:
            lines = await self._looking.do(self._shelf.lines)
        except OSError as error:
            lines, trouble = [], f"{self._shelf.root} cannot be read: {reason(error)}"
        else:
            trouble = ""
        if path == "/":
            return await self._list(request, lines, trouble)
        if path == "/compare":
            asked = set(parse_qs(request.url.query).get("run", ()))
            return await self._page(request, [one for one in lines if one.key in asked], None)
        if path.startswith("/runs/"):
            place = path.removeprefix("/runs/").strip("/")
            below = [one for one in lines if f"{one.key}/".startswith(f"{place}/") or not place]
            return await self._page(request, below, place.count("/") + 1 if place else 0)
        return _line(404, "there is nothing of this name; the list of runs is at /")

    async def _list(self, request: Request, lines: Sequence[Line], trouble: str) -> Response:
        tag = _tag(self._began, lines, trouble)
        if _has(request, tag):
            return Response(status_code=304, headers={"ETag": tag})
        content = await self._looking.do(lambda: index(str(self._shelf.root), lines, trouble))
        return _html(content, tag, index_policy())

    async def _page(self, request: Request, lines: Sequence[Line], depth: int | None) -> Response:
        """A page of runs: as it was made, if nothing has changed since, or it has only just been made.

        depth: they are all runs of one folder, so deep below the one that is watched; None: they were chosen.
        """
        if not lines:
            return _line(404, "no run is there; the list of those that are is at /")
        search = None if depth is None else self._shelf.search(lines[0], depth)
        size = sum(line.size for line in lines)
        if size > MOST:
            remedy = "choose fewer, or draw them once: fedsim report"
            return _line(503, f"{size:,} bytes of rows are more than the {MOST:,} that are shown live; {remedy}")
        key, tag = _tag(depth, [line.place for line in lines]), _tag(self._began, lines, search)
        made = self._made.get(key)
        if made is None or (made.tag != tag and time.monotonic() > made.until):
            try:
                made = await self._drawing.do(lambda: self._draw_once(key, tag, lines, search))
            except FedsimError as error:
                return _line(503, str(error))
            except OSError as error:
                return _line(503, f"the runs cannot be read: {reason(error)}")
        if _has(request, made.tag):
            return Response(status_code=304, headers={"ETag": made.tag})
        return _html(made.content, made.tag, policy(live=True))

    def _draw_once(self, key: str, tag: str, lines: Sequence[Line], search: Search | None) -> _Made:
        """Make a page, unless somebody who asked before has had it made meanwhile."""
        made = self._made.get(key)
        if made is None or made.tag != tag:
            began = time.monotonic()
            content = self._draw(lines, search).encode()
            ended = time.monotonic()
            made = self._made[key] = _Made(tag, content, ended + PAUSE * (ended - began))
        self._made.move_to_end(key)
        while len(self._made) > KEPT:
            self._made.popitem(last=False)
        return made


def _tag(*told: object) -> str:
    """What a state is known by."""
    return f'"{hashlib.sha256(repr(told).encode(errors="surrogateescape")).hexdigest()[:32]}"'


def _has(request: Request, tag: str) -> bool:
    """Whether who asks has this already."""
    return tag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]


def _html(content: str | bytes, tag: str, allowed: str) -> Response:
    """allowed: what the browser is to let the page do."""
    return HTMLResponse(content, headers={"ETag": tag, "Content-Security-Policy": f"{allowed}; frame-ancestors 'none'"})


def _line(status: int, said: str, **headers: str) -> Response:
    return PlainTextResponse(f"{said}\n", status, headers)
