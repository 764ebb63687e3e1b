"""A sweep: which cells a command line means, which of them are left to run, and how they went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from peftbench.config import compose
from peftbench.config.bounds import TOO_LONG, too_long
from peftbench.config.spec import Cell
from peftbench.config.words import OPTUNA, words_for_globs
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import CHECKPOINT_FILE, RECORD_FILE, expanded
from peftbench.record import record_status
from peftbench.study import compose_many, done, index, lock
from peftbench.study.cell_state import FILE as STATES_FILE
from peftbench.study.cell_state import CellStates
from peftbench.study.done import Reads
from peftbench.study.index import Planned

OF_ALL_CELLS = ("outputs", "study", "cache", "rerun", "cells_per_gpu")


def cells_of(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every cell that a multirun's command line describes, an experiment's own sweep included.

    Raises:
        ConfigError: an override cannot be read.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    items = parsed(overrides)
    swept_over = [item for item in items if item.is_discrete_sweep()]
    if fixed := [str(item.input_line) for item in swept_over if item.key_or_group in OF_ALL_CELLS]:
        raise ConfigError([f"{shown(line)}: has one value in a sweep, the same for all cells" for line in fixed])
    if empty := [item.input_line for item in swept_over if not list(item.sweep_string_iterator())]:
        raise ConfigError([f"{shown(line)}: nothing to sweep over" for line in empty])
    if intervals := [item.input_line for item in items if item.is_interval_sweep()]:
        raise ConfigError([f"{line}: an interval is searched, by run -m {OPTUNA}" for line in intervals])
    try:
        batches = BasicSweeper.split_arguments(items, max_batch_size=None)
    except HydraException as error:
        raise ConfigError(str(error)) from None
    return [list(words) for batch in batches for words in batch]


def parsed(overrides: Sequence[str]) -> list[Override]:
    """What Hydra reads in the words of a multirun; those of an experiment's own sweep come first.

    Raises:
        ConfigError: an override cannot be read.
    """
    words = GlobWords([item for item in overrides if item.startswith(compose.SEARCHPATH)])
    parser = OverridesParser.create(words)  # type: ignore[arg-type]
    problems: list[str] = []
    items: list[Override] = []
    for override in overrides:
        try:
            items += parser.parse_overrides([override])  # of one only: it then knows where to look for globs
        except HydraException:
            problems.append(f"{shown(override)}: not of the form key=value or key=value1,value2")
    if problems:
        raise ConfigError(problems)
    plain = [str(item.input_line) for item in items if not item.is_sweep_override()]
    swept = dict(compose.load(plain).hydra.sweeper.params or {})
    typed = {item.key_or_group for item in items}
    return parser.parse_overrides([f"{key}={value}" for key, value in swept.items() if key not in typed]) + items


def is_sweep(overrides: Sequence[str]) -> bool:
    """Whether these overrides may mean several cells; those that cannot be read do not."""
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_overrides(list(overrides))
    except HydraException:
        return False
    return any(item.is_sweep_override() or item.key_or_group == "experiment" for item in parsed)


class GlobWords:
    """What Hydra's parser of overrides asks for the words that a glob may stand for."""

    def __init__(self, searchpaths: Sequence[str]) -> None:
        self._searchpaths = searchpaths

    def get_group_options(self, group: str, **_: object) -> list[str]:
        """See Hydra's `ConfigLoader`."""
        return words_for_globs(group, self._searchpaths)


left: list[list[str]] = []  # what Hydra's sweeper is to run; Hydra makes it itself, so it cannot be told otherwise


@dataclass(frozen=True)
class Sweep:
    """The cells of one command line.

    Attributes:
        outputs: the folder that all studies lie in.
        study: the one that the cells belong to.
        cells: all of them.
        left: those to run now.
        open: those that were not finished before, or are to be run all the same.
    """

    outputs: Path
    study: str
    cells: list[Planned]
    left: list[Planned]
    open: list[Planned]

    @property
    def before(self) -> int:
        """How many were finished before."""
        return len(self.cells) - len(self.open)

    def finished(self) -> list[Planned]:
        """Those that were."""
        others = {id(cell) for cell in self.open}
        return [cell for cell in self.cells if id(cell) not in others]


def listed(outputs: Path, study: str) -> dict[Path, str]:
    """The folders that name the cells which a study lists, by the whole of each."""
    whole = outputs.resolve()
    return {whole / name: name for name in index.names(index.read(outputs / study).values())}


def with_kept(lines: Sequence[list[str]], where: Path | None = None) -> list[list[str]]:
    """The overrides of these cells and of all others that their study keeps; where they say no more than which study
    it is, of these others alone.

    Args:
        where: other outputs, whose study of this name keeps the others; they are then cells of these lines' outputs.

    Raises:
        ConfigError: no cell is kept there.
    """
    outputs, study = study_of(lines[0])
    kept = [cell.overrides for cell in index.read((where or outputs) / study).values()]
    if where is not None:
        if not kept:
            raise ConfigError(f"--saved-in {shown(where, 100)}: keeps no cell of study {study}")
        here = [word for word in lines[0] if word.startswith("outputs=")]
        kept = [[*(word for word in words if not word.startswith("outputs=")), *here] for words in kept]
    own = [line for line in lines if not kept or not all(word.startswith(("study=", "outputs=")) for word in line)]
    typed = {index.key(line) for line in own}
    return [*own, *(words for words in kept if index.key(words) not in typed)]


def prepare(
    lines: Sequence[list[str]],
    rerun: str = "unfinished",
    to_come: Mapping[Path, str] | None = None,
    run_here: bool = False,
) -> Sweep:
    """Find out which cells have to run; the study remembers all of them.

    Args:
        lines: the overrides of each cell.
        rerun: which cells with a record run again: unfinished, failed or all.
        to_come: the study's cells that others may start from before they are done, by their whole folders.
        run_here: whether this machine runs them next, and so has to have their rows.

    Raises:
        ConfigError: a cell is not possible; every problem of every cell is in it.
        DataError: the rows of a task are not on this machine, where they have to be; every such task is in it.
    """
    outputs, study = study_of(lines[0])
    states = CellStates(outputs, study)
    sweep = _survey(lines, rerun, states, to_come or {})
    if run_here and (absent := absent_rows(sweep)):
        raise DataError(absent)
    index.add(outputs / study, {index.key(cell.overrides): cell for cell in sweep.cells})
    states.keep()
    _remove_checkpoints(sweep)
    return sweep


def _remove_checkpoints(sweep: Sweep) -> None:
    """Those of finished cells, left by runners that were killed after the record: no runner comes to them again."""
    for folder in (sweep.outputs / cell.folder for cell in sweep.finished()):
        if (folder / CHECKPOINT_FILE).exists() and record_status(folder / RECORD_FILE) == "done":
            with lock.Lock(folder) as held:
                if held.held:
                    done.remove_checkpoint(folder)


def survey(lines: Sequence[list[str]], rerun: str = "unfinished", to_come: Mapping[Path, str] | None = None) -> Sweep:
    """As `prepare`, and nothing is written."""
    return _survey(lines, rerun, CellStates(*study_of(lines[0])), to_come or {})


def absent_rows(sweep: Sweep) -> list[str]:
    """A line for every task of the cells that are left whose rows are not on this machine, as far as folders show."""
    rows = {repr(cell.reads.rows): cell.reads.rows for cell in sweep.left if cell.reads is not None}
    return list(dict.fromkeys(line for one in rows.values() for line in one.absent()))


def kinds(cells: Sequence[Planned], to_come: Mapping[Path, str]) -> dict[str, Cell]:
    """A cell of every folder that seeds share, composed anew.

    Args:
        to_come: as of `prepare`.

    Raises:
        ConfigError: a cell is not possible.
    """
    words = {cell.folder.rpartition("/")[0]: cell.overrides for cell in cells}
    composed: dict[str, Cell] = {}
    for folder, cell in zip(words, compose_many.cells_from(list(words.values()), to_come), strict=True):
        if isinstance(cell, ConfigError):
            raise cell
        composed[folder] = cell
    return composed


def list_again(outputs: Path, study: str, lines: Mapping[str, list[str]]) -> None:
    """Write into a study's list where cells lie whose start has come or has changed.

    Args:
        lines: the overrides of each, by the name that the list has for them.

    Raises:
        ConfigError: a cell is not possible, or the list cannot be written.
        DataError: the list cannot be read.
    """
    index.add(outputs / study, _compose(lines, listed(outputs, study)))


def _survey(lines: Sequence[list[str]], rerun: str, states: CellStates, to_come: Mapping[Path, str]) -> Sweep:
    """Cells that the study knows by the same words are not composed again."""
    outputs, study = states.outputs, states.study
    current = done.once_each(done.still_starts_from)
    known = {
        name: cell
        for name, cell in index.read(outputs / study).items()
        # Somebody's own yaml files may have changed since: their cells are composed anew.
        if not any(word.startswith(compose.SEARCHPATH) for word in cell.overrides)
        and cell.reads is not None
        and current(cell.reads)
    }
    by_key = {index.key(words): words for words in lines}
    new = _compose({name: words for name, words in by_key.items() if name not in known}, to_come)
    planned = [known.get(name) or new[name] for name in by_key]
    # Where all rows have labels, shots.split=1 and 2 are one cell; two folders of rows stay two, though named alike.
    cells = list({(cell.folder, _but_split(cell.overrides)): cell for cell in planned}.values())
    statuses = [states.status(cell) for cell in cells]
    left = [cell for cell, status in zip(cells, statuses, strict=True) if has_to_run(status, rerun)]
    unfinished = [cell for cell, status in zip(cells, statuses, strict=True) if rerun == "all" or status != "done"]
    return Sweep(outputs, study, cells, left, unfinished)


def _but_split(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if not word.startswith("shots.split="))


def has_to_run(status: str | None, rerun: str) -> bool:
    """Whether a cell with a record of this status (None: it has none) is to be run."""
    if rerun == "all":
        return True
    if rerun == "failed":
        return status in ("failed", "diverged", "quarantined", "deadly")
    return status not in ("done", "quarantined")


def study_of(overrides: Sequence[str]) -> tuple[Path, str]:
    """The outputs folder and the study that these overrides name.

    Raises:
        ConfigError: no file system has room for such a path.
    """
    given = dict(item.partition("=")[::2] for item in overrides)
    plain = compose.resolved(compose.load([f"{key}={given[key]}" for key in ("outputs", "study") if key in given]))
    if too_long(outputs := str(plain["outputs"])):
        raise ConfigError(f"outputs={shown(outputs)}: {TOO_LONG}")
    return expanded(outputs), str(plain["study"])


def forget(sweep: Sweep) -> None:
    """Remove the study where it holds nothing but these cells' names: every one that it was asked for was refused."""
    index.forget(sweep.outputs / sweep.study, {cell.folder for cell in sweep.left}, [STATES_FILE])


def tally(sweep: Sweep) -> dict[str, int]:
    """How the cells stand: done, failed (diverged included), of these quarantined or deadly, elsewhere, left."""
    numbers = {"done": sweep.before, "failed": 0, "quarantined": 0, "deadly": 0, "elsewhere": 0, "left": 0}
    states = CellStates(sweep.outputs, sweep.study)
    for cell in sweep.open:
        status = states.status(cell)
        if status == "done":
            numbers["done"] += 1
        elif lock.alive(sweep.outputs / cell.folder / lock.FILE):
            numbers["elsewhere"] += 1
        else:
            numbers["left" if status is None else "failed"] += 1
            numbers["quarantined"] += status == "quarantined"
            numbers["deadly"] += status == "deadly"
    states.keep()
    return numbers


def _compose(lines: Mapping[str, list[str]], to_come: Mapping[Path, str]) -> dict[str, Planned]:
    """Folder of each cell; cells that differ by their seed alone are composed once."""
    # Hydra escapes the braces where a folder holds ${seed}
    seeds = {name: None if "{seed" in "".join(words) else _seed(words) for name, words in lines.items()}
    bases = {name: tuple(word for word in words if word != f"seed={seeds[name]}") for name, words in lines.items()}
    first = {base: lines[name] for name, base in reversed(bases.items())}
    cells = dict(zip(first, compose_many.cells_from(list(first.values()), to_come), strict=True))
    if wrong := [cell for cell in cells.values() if isinstance(cell, ConfigError)]:
        raise ConfigError([problem for error in wrong for problem in error.every])
    planned = {}
    shared: dict[str, Reads] = {}
    for name, words in lines.items():
        cell = cells[bases[name]]
        assert isinstance(cell, Cell)
        seed = seeds[name]
        folder = replace(cell, seed=cell.seed if seed is None else int(seed)).folder
        reads = done.reads_of(cell)
        searches = cell.select.factors is not None or cell.select.trials is not None
        after = _after(cell, to_come) if to_come else {}
        planned[name] = Planned(folder, words, shared.setdefault(repr(reads), reads), searches, after)
    return planned


def _after(cell: Cell, to_come: Mapping[Path, str]) -> dict[index.Parent, str]:
    """Those of the study's cells that a cell starts from or is taught by."""
    old = cell.objective.old if cell.objective.asks_old else None
    parents: dict[index.Parent, str | None] = {"init_from": cell.init_from, "objective.old": old}
    names = {key: to_come.get(Path(folder).resolve()) for key, folder in parents.items() if folder is not None}
    return {key: name for key, name in names.items() if name is not None}


def _seed(words: Sequence[str]) -> str | None:
    return next((word[5:] for word in words if word.startswith("seed=") and word[5:].isdecimal()), None)
