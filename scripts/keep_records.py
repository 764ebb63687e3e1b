"""Copy of a study what is small: records and dev predictions, and of its search the records alone. No text of any row.

Paths of the machine are left out of the copy, and its digests are made anew.

    python scripts/keep_records.py OUTPUTS STUDY TO

`peftbench table STUDY --outputs TO` and all other views work on the copy; deltas and checkpoints are left behind.
"""

import argparse
import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

from peftbench.record import SEARCH_SUFFIX, Record, find_records, read_record, record_status, write_record

ABSOLUTE = re.compile(r"(?<![\w.~/:-])/(?:[^/\s'\",]+/)*([^/\s'\",]+)")


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
            write_record(without_paths(read_record(path), asked.outputs), target)
            for file in path.parent.glob("predictions/dev*.tsv") if name == asked.study else ():
                (target / "predictions").mkdir(exist_ok=True)
                shutil.copyfile(file, target / "predictions" / file.name)


def without_paths(record: Record, outputs: Path) -> Record:
    """The record with the paths of its machine replaced by what the documentation calls them."""
    places = {str(outputs): "outputs", str(outputs.resolve()): "outputs", record.config["cache"]: "~/.cache/peftbench"}
    if path := record.config["data"]["path"]:
        places[path] = "GLUE"
    longest_first = sorted(places.items(), key=lambda place: -len(place[0]))

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(cleaned(item) for item in value)
        if not isinstance(value, str):
            return value
        for place, name in longest_first:
            value = value.replace(place, name)
        return ABSOLUTE.sub(r"\1", value)  # of any other folder its own name

    made = record.made
    if made is not None:
        made = dataclasses.replace(made, keys=cleaned(made.keys), facts=cleaned(made.facts))
    return dataclasses.replace(
        record, config=cleaned(record.config), overrides=cleaned(record.overrides), made=made, row=cleaned(record.row)
    )


if __name__ == "__main__":
    main()
