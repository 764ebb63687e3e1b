"""What tests of forged files share: odd things in the place of a file, a folder's state, a command's memory."""

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from peftbench.cli import main

ESC = "\x1b]52;c;ZXZpbA==\x07"  # puts a word on the clipboard of many terminals
MOST_MB = 1000  # that a command may take, whatever it is given


class Said(NamedTuple):
    """What a command that ran in this process said."""

    code: int
    out: str
    err: str


def seen(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below a folder with what changes when it does; links are not followed."""
    return {
        str(path.relative_to(folder)): (info.st_mode, info.st_size, info.st_mtime_ns)
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] != "cache" and not path.is_dir()
        for info in [path.lstat()]
    }


def in_process(words: list[str], capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Said:
    """The command in this process: exit code, output, errors."""
    patch.setattr(sys, "argv", ["peftbench", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capture.readouterr()
    assert "Traceback" not in err
    assert not set("\x1b\x07\x9b") & set(out + err), "a terminal would obey"
    assert all(len(line) <= 200 for line in err.splitlines()), err
    return Said(int(ended.value.code or 0), out, err)


def peak_mb(lines: list[list[str]], folder: Path) -> tuple[float, str, str]:
    """What commands take at most, one after the other in a process of their own, in MiB; what they said."""
    code = (
        "import sys\n"
        "from peftbench.cli import main\n"
        f"for words in {lines!r}:\n"
        "    sys.argv = ['peftbench', *words]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "peak, = (line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print('\\npeak', peak)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    out, _, peak = done.stdout.rpartition("peak")
    return int(peak) / 1024, out, done.stderr


PLACES: dict[str, Callable[[Path], None]] = {  # in the place of a record, no file, or one of another kind
    "pipe": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "device": lambda path: path.symlink_to("/dev/tty"),
    "zeros": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10 << 30),
}


def bomb(size: int) -> bytes:
    """A member of so many zeros, made without them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)  # the same again, as often as one likes
    packed = packed * (size >> 24) + packer.flush()
    head = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(packed), 100, 8, 0)  # it says: 100 bytes
    entry = struct.pack("<H", 20) + head + struct.pack("<HHHII", 0, 0, 0, 0, 0)
    first = b"PK\x03\x04" + head + b"CoLA.tsv" + packed
    last = b"PK\x01\x02" + entry + b"CoLA.tsv"
    return first + last + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(last), len(first), 0)
