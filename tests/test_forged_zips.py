"""Forged submissions: each is refused in lines, whatever it says of itself."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from forgery import ESC, PLACES, Said, bomb, seen

# Zips: what is done to a good submission.


def zipped(contents: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return out.getvalue()


def patched(content: bytes, at: int, value: int) -> bytes:
    """With two bytes changed in the header of the first member, and in the list at the end."""
    changed = bytearray(content)
    struct.pack_into("<H", changed, content.index(b"PK\x03\x04") + at, value)
    struct.pack_into("<H", changed, content.index(b"PK\x01\x02") + at + 2, value)
    return bytes(changed)


COLA = b"index\tprediction\n" + b"0\t0\n" * 1062
SMALL = {"CoLA.tsv": b"index\tprediction\n" * 20}
ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a readable zip file"),
    "word": (lambda: b"hello", "not a readable zip file"),
    "cut": (lambda: zipped(SMALL)[:-10], "not a readable zip file"),
    "encrypted": (lambda: patched(zipped(SMALL), 6, 1), "CoLA.tsv: is encrypted"),
    "unknown compression": (lambda: patched(zipped(SMALL), 8, 77), "CoLA.tsv: is compressed by another method"),
    "lzma": (lambda: zipped(SMALL, zipfile.ZIP_LZMA), "CoLA.tsv: is compressed by another method"),
    "corrupt": (lambda: zipped(SMALL).replace(b"CoLA.tsv\xcb", b"CoLA.tsv\xff", 1), "CoLA.tsv: is damaged"),
    "other name within": (lambda: zipped(SMALL).replace(b"CoLA.tsv", b"RTEx.tsv", 1), "CoLA.tsv: is damaged"),
    "bomb": (lambda: bomb(3 << 30), "CoLA.tsv"),
    "zeros": (lambda: zipped({"CoLA.tsv": bytes(64 << 20)}), "CoLA.tsv: larger than"),
    "many files": (lambda: zipped({f"{i}.tsv": b"" for i in range(300)}), "300 files"),
    "above": (lambda: zipped({"../../forged.tsv": b"x"}), "../../forged.tsv is none of the official files"),
    "absolute": (lambda: zipped({"/tmp/forged.tsv": b"x"}), "/tmp/forged.tsv is none of the official files"),
    "terminal": (lambda: zipped({f"a{ESC}.tsv": b"x"}), "is none of the official files"),
    "terminal within": (lambda: zipped({"CoLA.tsv": COLA + f"0\t{ESC}".encode()}), "CoLA.tsv"),
    "long line": (lambda: zipped({"CoLA.tsv": COLA + b"0\t" + b"9" * 7_000_000}), "CoLA.tsv"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_a_forged_zip_is_refused_in_lines(
    tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make, line = ZIPS[kind]
    monkeypatch.chdir(tmp_path)
    Path("glue.zip").write_bytes(make())
    before = seen(tmp_path)
    code, out, err = command("submission", "--check", "glue.zip")
    assert (code, out, seen(tmp_path)) == (3, "", before)
    assert line in err


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_zip_at_all_is_refused_in_a_line(
    tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    PLACES[kind](tmp_path / "glue.zip")
    code, out, err = command("submission", "--check", "glue.zip")
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert err.startswith("glue.zip: ")
