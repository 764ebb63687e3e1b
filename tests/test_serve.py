"""A live page: it follows the records, answers its own name alone, and does nothing but read."""

import http.client
import itertools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browser import Browser
from support import PYTHON, call

from peftbench.report import page, serve
from peftbench.report.records import read_so_far
from peftbench.study import status
from peftbench.study.lock import Lock

Asked = tuple[int, dict[str, str], bytes]


@contextmanager
def serving(tmp_path: Path, port: int = 0, before: Callable[[], None] = lambda: None) -> Iterator[serve.Server]:
    """A live page of the study "made"; `before` is called before its content is made, each time."""
    read = serve.KeptRecords()

    def content() -> dict[str, Any]:
        before()
        return page.content(read_so_far(tmp_path / "outputs", "made", read=read))

    def states() -> Iterable[tuple[str, int]]:
        return status.by_state(status.cells_of(tmp_path / "outputs", "made")).items()

    with serve.Server(port) as server:
        live = serve.Live(tmp_path / "outputs" / "made", content, states)
        thread = threading.Thread(target=server.follow, args=(live,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[serve.Server]:
    """A live page of a study with one run, that looks at the records whenever it is asked."""
    monkeypatch.setattr(serve, "PAUSE", 0.0)
    monkeypatch.setattr(serve, "SPARE", 0)
    write_run("lora", "mrpc", 0, 0.8)
    with serving(tmp_path) as server:
        yield server


def ask(server: serve.Server, path: str, method: str = "GET", **headers: str) -> Asked:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=300)
    connection.request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def runs(server: serve.Server) -> list[tuple[str, int]]:
    return [(run["name"], run["seed"]) for run in json.loads(ask(server, "/data.json")[2])["runs"]]


def test_a_live_page_follows_the_records(server: serve.Server, write_run: Callable[..., Path], tmp_path: Path) -> None:
    code, headers, text = ask(server, "/")
    assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b'<body data-poll="5000">' in text
    assert runs(server) == [("lora", 0)]
    _, headers, _ = ask(server, "/data.json")
    assert ask(server, "/data.json", If_None_Match=headers["ETag"])[::2] == (304, b"")
    folder = write_run("bitfit", "mrpc", 1, 0.7)
    assert sorted(runs(server)) == [("bitfit", 1), ("lora", 0)]
    assert ask(server, "/data.json", If_None_Match=headers["ETag"])[0] == 200
    (folder / "result.json").write_text("{")
    assert runs(server) == [("lora", 0)]
    (tmp_path / "outputs" / "made").rename(tmp_path / "outputs" / "elsewhere")
    assert runs(server) == [("lora", 0)]  # what was there last
    assert "study made: there is none under" in json.loads(ask(server, "/data.json")[2])["problem"]


def test_a_page_that_is_being_made_keeps_nobody_else_waiting(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "PAUSE", 0.0)
    monkeypatch.setattr(serve, "SPARE", 0)
    begun, on = threading.Event(), threading.Event()
    calls = itertools.count()

    def before() -> None:
        if next(calls):  # the first page is made before the server begins
            begun.set()
            assert on.wait(300)

    write_run("lora", "mrpc", 0, 0.8)
    with serving(tmp_path, before=before) as server, ThreadPoolExecutor(1) as other:
        old = ask(server, "/data.json")
        write_run("bitfit", "mrpc", 1, 0.7)
        waiting = other.submit(runs, server)
        try:
            assert begun.wait(300)
            assert ask(server, "/data.json")[2] == old[2]
            assert ask(server, "/data.json", If_None_Match=old[1]["ETag"])[0] == 304
        finally:
            on.set()
        assert sorted(waiting.result(300)) == [("bitfit", 1), ("lora", 0)]
        assert next(calls) == 2, "one thread made it"


def test_the_longer_a_page_takes_the_rarer_it_is_made(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, takes = [1000.0], [0.01]
    monkeypatch.setattr(serve, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def before() -> None:
        now[0] += takes[0]

    write_run("lora", "mrpc", 0, 0.8)
    with serving(tmp_path, before=before) as server:
        takes[0] = 7.0
        for seed, waits, seen in ((1, 1.0, 1), (2, 1.1, 3), (3, 69.0, 3), (4, 1.5, 5)):
            write_run("lora", "mrpc", seed, 0.8)
            now[0] += waits
            assert len(runs(server)) == seen


def test_what_has_not_changed_is_not_written_again(server: serve.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def dumps(content: Any, **words: Any) -> str:
        written.append(content)
        return json.dumps(content, **words)

    monkeypatch.setattr(serve, "json", SimpleNamespace(dumps=dumps))
    _, headers, _ = ask(server, "/data.json")
    for _ in range(3):
        assert ask(server, "/data.json", If_None_Match=headers["ETag"])[0] == 304
    assert len(written) == 1


def test_a_page_is_there_before_the_first_record_and_outlives_its_server(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Browser
) -> None:
    monkeypatch.setattr(serve, "PAUSE", 0.02)
    monkeypatch.setattr(serve, "SPARE", 0)
    monkeypatch.setattr(serve, "POLL", 0.02)
    planned = tmp_path / "outputs" / "made" / "mrpc-lora-0" / "seed0" / ".hydra"
    planned.mkdir(parents=True)
    (planned / "overrides.yaml").write_text("- method=lora\n")
    with serving(tmp_path) as server:
        tab = browser.open(server.address)
        assert tab.run("get('summary').textContent") == "0 runs, 0 failed; 1 cell: 1 missing"
        with Lock(planned.parent):
            tab.until("get('summary').textContent === '0 runs, 0 failed; 1 cell: 1 running'")
        for task in ("mrpc", "cola"):
            write_run("bitfit", task, 1, 0.7)
        tab.until("get('summary').textContent.startsWith('2 runs, 0 failed; 3 cells: 2 done, 1 missing')")
        tab.run("document.querySelector('#wrong summary').click()")
        tab.until("document.querySelector('#wrong table')")
        write_run("lora", "mrpc", 1, 0.8)
        tab.until("data.runs.length === 3 && document.querySelector('#wrong details[open] table')")
    tab.until("get('summary').textContent === 'the server does not answer; this is the last state'")
    with serving(tmp_path, server.server_port):
        tab.until("get('summary').textContent.startsWith('3 runs, 0 failed')")
        assert tab.run("data.runs.length") == 3
        tab.call("Page.close")


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("POST", "/", None, 501),
        ("DELETE", "/data.json", None, 501),
        ("HEAD", "/", None, 501),
        ("GET", "/result.json", None, 404),
        ("GET", "/../outputs/made", None, 404),
        ("GET", "/data.json", "somewhere.else:80", 403),
    ],
)
def test_nothing_else_is_answered(server: serve.Server, method: str, path: str, host: str | None, status: int) -> None:
    own = f"localhost:{server.server_port}"
    assert ask(server, path, method, Host=host or own)[0] == status
    assert server.server_address[0] == "127.0.0.1"


def test_the_command_says_where_it_is_and_ends_by_a_signal(server: serve.Server, tmp_path: Path) -> None:
    words = ["report", "started", "--serve"]
    (tmp_path / "outputs" / "started").mkdir()  # nothing has run yet
    with subprocess.Popen([*PYTHON, *words, "0"], cwd=tmp_path, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        port = int(line.split(":")[2].split("/")[0])
        answer = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        answer.request("GET", "/data.json")
        told = json.loads(answer.getresponse().read())
        assert (told["study"], told["runs"], told["cells"]) == ("started", [], {})
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(300) == 130
    taken = call(*words, str(server.server_port), cwd=tmp_path)
    assert (taken.returncode, taken.stdout) == (2, "")
    assert taken.stderr == (
        f"--serve {server.server_port}: the port is in use; choose another, or 0 for any that is free\n"
    )
    assert "--serve 70000: must be a port" in call(*words, "70000", cwd=tmp_path).stderr
    assert "--serve writes no file" in call(*words, "0", "--to", "page.html", cwd=tmp_path).stderr
