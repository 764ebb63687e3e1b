"""Records run again: whether a record says what its cell gives here and now."""

import random
from collections.abc import Sequence
from pathlib import Path

from peftbench.config import compose
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import RECORD_FILE
from peftbench.record import Record, find_records, read_record
from peftbench.study.agreement import Agreement, agreement

OWN = ["tracker=none", "progress=false", "study=verified"]  # what comes on top: no part of what a cell is
FOREIGN = ("hydra.", "hydra/")  # prefixes of words that may name code or yaml of others


def records_of(place: Path, sample: int) -> tuple[list[Path], int]:
    """The records to verify, and how many artefacts are left out: of a run's folder or record that one, of a study so
    many, the same each time.

    Raises:
        ConfigError: there is none.
    """
    path = place / RECORD_FILE if place.is_dir() else place
    if path.is_file():
        return [path], 0
    every = list(find_records(place))
    if not every:
        raise ConfigError(f"{shown(place, 100)}: neither a record nor a study with records")
    paths = [path for path in every if not _is_artefact(path)]
    chosen = paths if len(paths) <= sample else sorted(random.Random(0).sample(paths, sample))
    return chosen, len(every) - len(paths)


def _is_artefact(path: Path) -> bool:
    try:
        return read_record(path).made is not None
    except DataError:  # is named when it is verified
        return False


def verify(path: Path, scratch: Path, searchpath: str | None = None) -> tuple[Agreement, Record]:
    """Run a record's cell again, at the rates that its search had chosen, and compare.

    Args:
        path: the record.
        scratch: a folder for what the run leaves.
        searchpath: the user's own yaml files, where the record was made with some.

    Raises:
        ConfigError: it is an artefact's, or its cell is not possible here, or would need yaml files or classes that
            only the record names.
        DataError: the record, its rows or weights cannot be read.
    """
    from peftbench.runner.run import run

    record = read_record(path)
    if record.made is not None:
        raise ConfigError(f"{path}: made by peftbench {record.made.by}; only runs are run again")
    words = [*words_of(record, path, searchpath), *OWN]
    plain = compose.plain(words, scratch)
    cell = compose.build_plain(plain)
    if cell.fingerprint != record.fingerprint:
        made_by, here = record.versions.get("peftbench"), record.cell.method
        raise DataError(f"{path}: its words mean another cell here ({here}, recorded by version {made_by})")
    again = run(cell, plain.raw, words, record.search).record
    return agreement(record, again), again


def words_of(record: Record, path: Path, searchpath: str | None = None) -> list[str]:
    """The overrides of a record; nothing that they name beside this project's own words is read or imported.

    Raises:
        ConfigError, DataError: they name such a thing.
    """
    words = [word for word in record.overrides if not word.startswith(compose.SEARCHPATH)]
    if len(words) < len(record.overrides) and searchpath is None:
        raise ConfigError(f"{path}: made with yaml files of its own; --searchpath DIR says where yours lie")
    if bad := [word for word in words if "_target_" in word or word.lstrip("+~").startswith(FOREIGN)]:
        raise DataError(f"{path}: {shown(bad[0])}: a record may not name code")
    return [*([] if searchpath is None else [f"{compose.SEARCHPATH}[file://{searchpath}]"]), *words]


def counted(agreements: Sequence[Agreement]) -> str:
    """How many are which, in a line."""
    numbers = {name: sum(one.verdict == name for one in agreements) for name in ("same", "close", "differs")}
    texts = {"same": "bit for bit the same", "close": "close", "differs": "different"}
    return ", ".join(f"{number} {texts[name]}" for name, number in numbers.items() if number)
