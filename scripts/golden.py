"""Record the losses of methods that have none yet in tests/data/golden_losses.json, for the test that compares them.

    python scripts/golden.py            every row of the matrix without a series
    python scripts/golden.py lora id3   these too, though they have one

Six losses of the two-layer model in fp32. What is there is never changed unless it is named.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peftbench import run

TESTS = Path(__file__).resolve().parents[1] / "tests"


def main(arguments: Sequence[str] | None = None) -> None:
    """Record what is missing or named."""
    sys.path.insert(0, str(TESTS))
    rows = importlib.import_module("matrix").ROWS
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("again", nargs="*", help="rows to record anew")
    parser.add_argument("--file", type=Path, default=TESTS / "data" / "golden_losses.json")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.again) - set(rows):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    recorded = json.loads(asked.file.read_text(encoding="utf-8"))
    for name in rows:
        if name not in recorded or name in asked.again:
            recorded[name] = series(rows[name].overrides)
            print(name, *recorded[name])
    text = json.dumps({name: recorded[name] for name in [*rows, *recorded]}, indent=1)
    asked.file.write_text(text + "\n", encoding="utf-8")


def series(overrides: Sequence[str]) -> list[float]:
    """The losses of a short run in fp32."""
    support = importlib.import_module("support")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        places = [f"outputs={folder}/outputs", f"cache={folder}/cache"]
        result = run(*support.TINY, *overrides, "protocol.precision=fp32", *places)
        losses: list[float] = support.losses(result.folder)
        return losses


if __name__ == "__main__":
    main()
