"""Copy of a study what is small: records and dev predictions, and of its search the records alone. No text of any row.

Paths of the machine are left out of the copy, and its digests are made anew.

    python scripts/keep_records.py OUTPUTS STUDY TO

`peftbench table STUDY --outputs TO` and all other views work on the copy; deltas and checkpoints are left behind.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

from peftbench.record import SEARCH_SUFFIX, Record, find_records, read_record, record_status, write_record


def main() -> None:
    """Copy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("outputs", type=Path)
    parser.add_argument("study")
    parser.add_argument("to", type=Path)
    asked = parser.parse_args()
    for name in (asked.study, asked.study + SEARCH_SUFFIX):
        for path in find_records(asked.outputs / name):
            if record_status(path) != "done":
                continue
            target = asked.to / path.parent.relative_to(asked.outputs)
            write_record(without_paths(read_record(path)), target)
            if name == asked.study:
                (target / "predictions").mkdir(exist_ok=True)
                shutil.copyfile(path.parent / "predictions" / "dev.tsv", target / "predictions" / "dev.tsv")


def without_paths(record: Record) -> Record:
    """The record with the paths of its machine replaced by what the documentation calls them."""
    data = {**record.config["data"], "path": "GLUE"}
    model = {**record.config["model"], "weights": _last(record.config["model"]["weights"] or "")}
    config = {**record.config, "data": data, "model": model, "outputs": "outputs", "cache": "~/.cache/peftbench"}
    words = [word for word in record.overrides if not word.startswith(("outputs=", "cache="))]
    words = ["data.path=GLUE" if word.startswith("data.path=") else word for word in words]
    weights = "model.weights="
    words = [weights + _last(word.removeprefix(weights)) if word.startswith(weights) else word for word in words]
    return dataclasses.replace(record, config=config, overrides=words)


def _last(place: str) -> str:
    """Of a folder of weights its own name; a name on the hub stays."""
    return Path(place).name if Path(place).is_absolute() else place


if __name__ == "__main__":
    main()
