"""`peftbench apply`, `predict`, `export`: what is done with a finished run; `convert`, `backbone`: weights made
ready for one."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from peftbench.commands.parsing import Parser
from peftbench.commands.paths import empty, kept_if_used
from peftbench.config import compose, recipes, userfiles
from peftbench.config.spec import Cell, ModelSpec
from peftbench.ground import environment
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import DELTA_FILE, cache_folder
from peftbench.ground.quantity import quantity


def apply(arguments: Sequence[str]) -> int:
    """`peftbench apply RUN --output DIR`: the run's model as a plain transformers folder, or one for each task."""
    parser = Parser(prog="peftbench apply")
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("words", nargs="*", help="task=WORD: that one of the tasks that a run learned together")
    parser.add_argument("--output", required=True, help="folder to write")
    add_searchpath(parser)
    options = parser.parse_intermixed_args(arguments)
    run, task = _finished(options.run), _task(options.words)
    from peftbench.runner.apply import tasks_of, write_model

    with kept_if_used(Path(options.output)) as output:
        known, tasks = known_classes(options.searchpath), tasks_of(run)
        several = len(tasks) > 1 and task is None
        written = {output / one: one for one in tasks} if several else {output: task}
        notes = [write_model(run, folder, known, one) for folder, one in written.items()]
    for folder in written:
        print(folder if several else options.output)
    for note in dict.fromkeys(note for note in notes if note):
        print(note, file=sys.stderr)
    return 0


def predict(arguments: Sequence[str]) -> int:
    """`peftbench predict RUN FILE.tsv`: the run's labels for new rows."""
    parser = Parser(prog="peftbench predict")
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("file", help="tab-separated, with a header line that names the task's text columns")
    parser.add_argument("words", nargs="*", help="task=WORD: which of the tasks that a run learned together")
    add_searchpath(parser)
    options = parser.parse_intermixed_args(arguments)
    run, task = _finished(options.run), _task(options.words)
    from peftbench.runner.apply import label

    cache = compose.resolved(compose.load([]))["cache"]
    for line in label(run, Path(options.file), cache_folder(str(cache)), known_classes(options.searchpath), task):
        print(line)
    return 0


def export(arguments: Sequence[str]) -> int:
    """`peftbench export RUN --to DIR`: adapter and head in PEFT's format, of LoRA or of a type that peft runs."""
    parser = Parser(prog="peftbench export")
    parser.add_argument("run", help="folder of a finished run of LoRA, or of a type that peft runs")
    parser.add_argument("--to", required=True, help="folder to write")
    add_searchpath(parser)
    options = parser.parse_args(arguments)
    run = _finished(options.run)
    from peftbench.runner.deltas import export_peft

    with kept_if_used(Path(options.to)) as folder:
        export_peft(run, folder, known_classes(options.searchpath))
    print(options.to)
    return 0


def convert(arguments: Sequence[str]) -> int:
    """`peftbench convert FOLDER|HUB-NAME [model=WORD]`: model.safetensors beside a pytorch_model.bin."""
    parser = Parser(prog="peftbench convert")
    parser.add_argument("source", help="folder with a pytorch_model.bin, or owner/name of a model on the Hub")
    parser.add_argument("model", nargs="?", help="model=WORD: it must be the pickle that this model's yaml pins")
    options = parser.parse_args(arguments)
    word = options.model.removeprefix("model=") if options.model else None
    if options.model and word in ("", options.model):
        raise ConfigError(f"{shown(options.model)}: must be model=WORD, of a model whose pickle is pinned")
    from peftbench.runner.convert import convert

    print(convert(options.source, word))
    return 0


def backbone(arguments: Sequence[str]) -> int:
    """`peftbench backbone make=WORD [OVERRIDES] --to DIR`: one made from another; prints the words that use it."""
    parser = Parser(prog="peftbench backbone")
    parser.add_argument(
        "words",
        nargs="*",
        help="make=lowrank, mlm or merged, its keys make.KEY=VALUE, and a cell's: model=, text, seed",
    )
    parser.add_argument("--to", required=True, help="folder to write; it must be empty, or not there")
    add_searchpath(parser)
    options = parser.parse_intermixed_args(arguments)
    environment.one_process("backbone")
    recipe, words = recipes.split_words(options.words)
    if isinstance(recipe, recipes.Merged):
        if words:
            raise ConfigError(f"{shown(words[0])}: not a word of make=merged, whose backbone is that of make.run")
        known = known_classes(options.searchpath)
    else:
        cell = compose.cell_from(words)
    with kept_if_used(Path(options.to), empty) as folder:  # before the cost, which may be hours
        if isinstance(recipe, recipes.Merged):
            model, lines = _merged(recipe, folder, known)
        elif isinstance(recipe, recipes.MaskedLM):
            model, lines = cell.model, _masked(cell, recipe, folder)
        else:
            model, lines = cell.model, _low_rank(cell, recipe, folder)
    from peftbench.runner.backbone import words_for

    print(*words_for(model, folder))
    for line in lines:
        print(line, file=sys.stderr)
    return 0


def _merged(recipe: recipes.Merged, folder: Path, known: Collection[str]) -> tuple[ModelSpec, list[str]]:
    from peftbench.runner.merged import fold, write

    folded = fold(recipe, known)
    write(folded, folder)
    facts = folded.facts
    moved = f"{facts.distance:.3g}, {facts.distance / facts.length:.2%} of its length"
    return folded.model, [f"{facts.method} of {facts.task}, seed {facts.seed}: the backbone has moved by {moved}"]


def _low_rank(cell: Cell, recipe: recipes.LowRank, folder: Path) -> list[str]:
    from peftbench.runner.backbone import make_low_rank, plan

    ranks = plan(cell.model, cell.scope, recipe)
    facts = make_low_rank(cell, recipe, ranks, folder)
    before, after = facts.entries
    lines = [f"backbone: {quantity(after, 'entry')} of {before:,} ({after / before:.1%})"]
    if facts.distilled:
        states = f"{facts.distilled.before:.3g} before, {facts.distilled.after:.3g} after"
        lines.append(f"squared difference of hidden states on held-out text: {states}")
    return lines


def _masked(cell: Cell, recipe: recipes.MaskedLM, folder: Path) -> list[str]:
    from peftbench.runner.masked import check, make_masked

    check(cell.model)
    facts = make_masked(cell, recipe, folder)
    made = "new: drawn, and trained on this text alone" if facts.head == "new" else "the source's own, trained on"
    loss = f"{facts.before:.3f} before, {facts.after:.3f} after"
    return [f"masked-LM head: {made}", f"cross entropy of hidden tokens on held-out text: {loss}"]


def add_searchpath(parser: Parser) -> None:
    parser.add_argument(
        "--searchpath", metavar="DIR", help="your own configuration, where the run's method is none of this package's"
    )


def known_classes(searchpath: str | None) -> set[str]:
    """The classes outside this package that a run's files may name."""
    return set() if searchpath is None else userfiles.classes(Path(searchpath))


def _task(words: Sequence[str]) -> str | None:
    """What task= says, the only word that there may be."""
    for word in words:
        if not word.startswith("task="):
            raise ConfigError(f"{shown(word)}: not a word of this command; task=WORD says which of several is meant")
    return words[-1].partition("=")[2] if words else None


def _finished(run: str) -> Path:
    if not (Path(run) / DELTA_FILE).is_file():
        named = shown(run, 100) or "''"
        raise DataError(f"{named}: no {DELTA_FILE} there; it must be the folder of a finished run")
    return Path(run)
