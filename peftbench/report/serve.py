"""A study's page while the study runs: read from its records, given on this machine alone, and nothing else is done."""

import errno
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from peftbench.ground.errors import LONGEST_LINE, BadInput, ConfigError, short_line
from peftbench.ground.files import settled, stamp
from peftbench.record import Record, find_records, read_record
from peftbench.report import page

PORTS = range(65536)
PAUSE = 2.0  # seconds at least between two looks at the records
POLL = 5.0  # seconds after which a page asks again
NOTICE = 0.1  # seconds in which a server sees that it is to end
SPARE = 10  # times as long as a count of the cells took, no other is made: with thousands of them it takes seconds
PATIENCE = 10.0  # seconds that a reader may take over a request
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}

Content = dict[str, Any]


class KeptRecords:
    """Reads records; one whose file has not changed since is not read again."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[object, Record]] = {}

    def __call__(self, path: Path) -> Record:
        """See `read_record`."""
        mark = stamp(path)
        if path in self._kept and self._kept[path][0] == mark:
            return self._kept[path][1]
        record = read_record(path)
        if settled(mark):
            self._kept[path] = (mark, record)
        return record


class Live:
    """The page's content, made again when the study's records have changed.

    Args:
        study: the study's folder.
        make: content of the page (`page.content`) from the records that are there.
        count: states of cells and how many are in each, of all that were asked for.

    Raises:
        BadInput: `make` cannot, at first.
    """

    def __init__(
        self, study: Path, make: Callable[[], Content], count: Callable[[], Iterable[tuple[str, int]]]
    ) -> None:
        self._study, self._make, self._count = study, make, count
        self._lock = threading.Lock()
        self._cells: dict[str, int] = {}
        self._next_count = 0.0
        self._marks = self._looked_at()
        self._made = make()
        self._content = self._counted()
        self._until = time.monotonic() + PAUSE

    def content(self) -> Content:
        """What is there now; what was there last, and why, where that cannot be read."""
        with self._lock:
            if time.monotonic() >= self._until:
                try:
                    marks = self._looked_at()
                    if marks != self._marks:
                        self._made = self._make()
                        self._marks = marks
                    self._content = self._counted()
                except BadInput as error:  # records are being moved or removed, or are of another backbone
                    self._content = {**self._content, "problem": short_line(error.every[0], LONGEST_LINE)}
                self._until = time.monotonic() + PAUSE
            return self._content

    def _counted(self) -> Content:
        began = time.monotonic()
        if began >= self._next_count:
            self._cells = {state: number for state, number in self._count() if number}
            now = time.monotonic()
            self._next_count = now + SPARE * (now - began)
        return {**self._made, "cells": self._cells}

    def _looked_at(self) -> list[object]:
        return [stamp(path) for path in find_records(self._study)]


class Handler(BaseHTTPRequestHandler):
    """Gives the page and its data to those who ask for them by this server's own name; refuses all else."""

    server: "Server"
    timeout = PATIENCE

    def do_GET(self) -> None:
        """The page at /, its data at /data.json."""
        if self.headers.get("Host") not in self.server.names:  # a stranger's name for this machine
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            self._give("text/html; charset=utf-8", page.html(self.server.live.content(), POLL))
        elif self.path == "/data.json":
            self._give("application/json", json.dumps(self.server.live.content(), allow_nan=False))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _give(self, kind: str, text: str) -> None:
        content = text.encode()
        mark = f'"{hashlib.sha256(content).hexdigest()}"'
        same = self.headers.get("If-None-Match") == mark
        self.send_response(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK)
        for key, value in {**HEADERS, "Content-Type": kind, "ETag": mark}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0" if same else str(len(content)))
        self.end_headers()
        if not same:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page that is left open would fill the terminal."""


class Server(ThreadingHTTPServer):
    """The server of one study's page; use it as a context manager.

    Args:
        port: 0: any that is free.

    Raises:
        ConfigError: the port is no port, or cannot be had.
    """

    daemon_threads = True

    live: Live

    def __init__(self, port: int) -> None:
        if port not in PORTS:
            raise ConfigError(f"--serve {port}: must be a port, 1 to {PORTS[-1]}, or 0 for any that is free")
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            reason = "in use" if error.errno == errno.EADDRINUSE else f"not to be had ({error.strerror})"
            raise ConfigError(
                f"--serve {port}: the port is {reason}; choose another, or 0 for any that is free"
            ) from None
        self.names = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    def follow(self, live: Live) -> None:
        """Give this page until the process or `shutdown` ends it."""
        self.live = live
        self.serve_forever(NOTICE)

    @property
    def address(self) -> str:
        """What a browser opens."""
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser that was closed has seen enough."""
