"""What a study's script says to `peftbench`, where everything that it asks for is there already."""

import os
import subprocess
from pathlib import Path

STUDIES_OF = Path(__file__).resolve().parents[1] / "scripts"
NOTED = """#!/usr/bin/env bash
printf '%s\\t' "$@" >> "$NOTES"; echo >> "$NOTES"
[ "$1" != backbone ] || echo model=minilm_l6 model.weights=/newer model.sha256=null
"""


def commands_of(script: str, here: Path, *more: str) -> list[list[str]]:
    """The words of every command, in their order; both the data and the outputs are folders of `here`."""
    (here / "peftbench").write_text(NOTED)
    (here / "peftbench").chmod(0o755)
    environment = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}", "NOTES": str(here / "notes")}
    ended = subprocess.run(
        ["bash", STUDIES_OF / script, here, here / "outputs", *more],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return [line.rstrip("\t").split("\t") for line in (here / "notes").read_text().splitlines()]
