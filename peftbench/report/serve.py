"""A study's page while the study runs: read from its records, given on this machine alone, and nothing else is done."""

import errno
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
SPARE = 10  # times as long as a look took, no other is taken: a page of thousands of runs takes seconds of the study's
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


@dataclass(frozen=True)
class Answer:
    """What is given for an address, and the mark by which it is known again."""

    kind: str
    content: bytes
    mark: str


# Address -> kind and text of what is given there.
GIVEN: dict[str, tuple[str, Callable[[Content], str]]] = {
    "/": ("text/html; charset=utf-8", lambda content: page.html(content, POLL)),
    "/data.json": ("application/json", lambda content: json.dumps(content, allow_nan=False)),
}


class Live:
    """The page's content, made again when the study's records have changed.

    Whoever asks first after a pause takes a look, and waits for what it makes; others are given the last one meanwhile.

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
        self._looking = threading.Lock()
        began = time.monotonic()
        self._marks = self._looked_at()
        self._made = make()
        self._shown: tuple[Content, dict[str, Answer]] = self._counted(), {}  # and by address what was given of it
        self._until = _next_look(began)

    def answer(self, address: str) -> Answer:
        """What is given for one of `GIVEN`: what is there now, or was last, and why, where that cannot be read."""
        if time.monotonic() >= self._until and self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()
        content, answers = self._shown
        if address not in answers:
            kind, text = GIVEN[address]
            data = text(content).encode()
            answers[address] = Answer(kind, data, f'"{hashlib.sha256(data).hexdigest()}"')
        return answers[address]

    def _look(self) -> None:
        began = time.monotonic()
        try:
            marks = self._looked_at()
            if marks != self._marks:
                self._made = self._make()
                self._marks = marks
            content = self._counted()
        except BadInput as error:  # records are being moved or removed, or are of another backbone
            content = {**self._shown[0], "problem": short_line(error.every[0], LONGEST_LINE)}
        if content != self._shown[0]:
            self._shown = content, {}
        self._until = _next_look(began)

    def _counted(self) -> Content:
        return {**self._made, "cells": {state: number for state, number in self._count() if number}}

    def _looked_at(self) -> list[object]:
        return [stamp(path) for path in find_records(self._study)]


def _next_look(began: float) -> float:
    """When the records may be looked at again, after a look that ends now."""
    now = time.monotonic()
    return now + max(PAUSE, SPARE * (now - began))


class Handler(BaseHTTPRequestHandler):
    """Gives the page and its data to those who ask for them by this server's own name; refuses all else."""

    server: "Server"
    timeout = PATIENCE

    def do_GET(self) -> None:
        """The page at /, its data at /data.json."""
        if self.headers.get("Host") not in self.server.names:  # a stranger's name for this machine
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path in GIVEN:
            self._give(self.server.live.answer(self.path))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _give(self, answer: Answer) -> None:
        same = self.headers.get("If-None-Match") == answer.mark
        self.send_response(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK)
        for key, value in {**HEADERS, "Content-Type": answer.kind, "ETag": answer.mark}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0" if same else str(len(answer.content)))
        self.end_headers()
        if not same:
            self.wfile.write(answer.content)

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
