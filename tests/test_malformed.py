"""Malformed inputs, drawn from the kinds of scripts/malformed.py: each gets a line that is one, and leaves nothing."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "malformed.py"


def test_malformed_inputs_drawn_from_all_kinds_each_get_their_line() -> None:
    # the time that an answer may take is for an idle machine: the script without --seconds holds to it
    ended = subprocess.run([sys.executable, SCRIPT, "--draw", "40", "--seconds", "60"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert "40 of 40 malformed inputs get their line" in ended.stdout
