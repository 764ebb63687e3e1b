"""`peftbench count`: trainable entries, without weights."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftbench.commands.parsing import Parser
from peftbench.config import compose
from peftbench.ground.errors import ConfigError

if TYPE_CHECKING:
    from peftbench.config.spec import Cell
    from peftbench.runner.counts import Counts


def count(arguments: Sequence[str]) -> int:
    """`peftbench count`: trainable entries by closed inspection of a model without weights; a sweep gives a table."""
    if "--paper" in arguments:
        return count_paper(arguments)
    as_json = "--json" in arguments
    overrides = [compose.longhand(argument) for argument in arguments if argument not in ("--json", "-m")]
    from peftbench.study.sweep import cells_of, is_sweep

    if is_sweep(overrides) and len(lines := cells_of(overrides)) > 1:
        return count_all(lines, as_json)
    cell = compose.cell_from(overrides)
    from peftbench.commands import screen
    from peftbench.runner.counts import count_cell

    counts = count_cell(cell)
    if as_json:
        print(json.dumps(trained(counts)))
    else:
        screen.counts(cell, counts)
    return 0


def count_all(lines: Sequence[list[str]], as_json: bool) -> int:
    """The counts of several cells; one that is not possible gives its reason instead. The exit code is 2 where that
    is so of all of them, or a word is wrong."""
    from peftbench.commands import screen
    from peftbench.study.compose_many import cells_from

    common = set.intersection(*map(set, lines))
    names = [" ".join(word for word in words if word not in common) for words in lines]
    counted, wrong = {}, False
    for name, cell in zip(names, cells_from(lines), strict=True):  # other processes compose the next ones meanwhile
        counted[name] = _counted(cell)
        wrong |= isinstance(cell, compose.WrongWords)
    refused = [f"{name}: {counts}" for name, counts in counted.items() if isinstance(counts, str)]
    if len(refused) == len(counted) and not as_json:
        raise ConfigError(refused)
    if as_json:
        print(json.dumps({k: {"error": v} if isinstance(v, str) else trained(v) for k, v in counted.items()}, indent=1))
    else:
        screen.counts_of_all(" ".join(word for word in lines[0] if word in common), counted)
    return 2 if wrong or len(refused) == len(counted) else 0


def _counted(cell: "Cell | ConfigError") -> "Counts | str":
    from peftbench.runner.counts import count_cell

    try:
        if isinstance(cell, ConfigError):
            raise cell
        return count_cell(cell)
    except ConfigError as error:
        return error.problems[0]


def trained(counts: "Counts") -> dict[str, int | None]:
    """What trains, by name."""
    return {key: value for key, value in counts.as_dict().items() if key != "stored_bytes"}


def count_paper(arguments: Sequence[str]) -> int:
    """`peftbench count --paper PAPER`: every count that the paper states, against ours."""
    parser = Parser(prog="peftbench count")
    parser.add_argument("--paper", required=True, help="a word of conf/paper")
    from peftbench import papers

    paper = papers.load(parser.parse_args(arguments).paper)
    from peftbench.commands import screen
    from peftbench.study import counts

    screen.paper_counts(paper, list(counts.check(paper)))
    return 0
