"""`peftbench table`, `compare`, `flips`, `plot`, `report`, `submission`, `sync`: views of a study's records."""

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.commands import table_views
from peftbench.commands.parsing import Parser, number
from peftbench.commands.paths import writable, writable_file
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import expanded
from peftbench.ground.quantity import quantity
from peftbench.report.sheet import FORMATS

if TYPE_CHECKING:
    from peftbench.report.records import Study

PORT = 8765  # of a live page, unless another is given


def table(arguments: Sequence[str]) -> int:
    """`peftbench table STUDY`: mean and spread over seeds, one row per method; or another view that --show names."""
    parser = _study_parser("table")
    table_views.add_options(parser)
    _add_shots(parser)
    parser.add_argument("--format", metavar="WORD", help=f"one of: {', '.join(FORMATS)}: print it so, for a file")
    options = parser.parse_args(arguments)
    table_views.check(options)
    from peftbench.report import cost, few, records, sheet

    write = sheet.writer_of(options.format) if options.format is not None else None
    view = table_views.view(options)
    study = records.read_study(expanded(options.outputs), options.study, options.model)
    study = few.of_one_convention(study, options.shots)
    seen = view(study)
    if write:
        print(write(seen), end="")
        return 0
    from peftbench.commands import screen, tables

    if seen.rows:
        screen.sheet(seen)
    screen.failures(study.records)
    tables.say(cost.line(study.records))
    return 0


def compare(arguments: Sequence[str]) -> int:
    """`peftbench compare STUDY ONE OTHER`: which method is better; `--plan FILE`: a registered plan's claims."""
    parser = _study_parser("compare")
    parser.add_argument("first", nargs="?", help="a row of the study's table, e.g. id3")
    parser.add_argument("second", nargs="?", help="another")
    parser.add_argument("--plan", metavar="FILE", help="answer the claims of this registered plan, and nothing else")
    _add_margin(parser)
    options = parser.parse_intermixed_args(arguments)
    from peftbench.commands.tables import say
    from peftbench.report import comparison, plans, records
    from peftbench.report.statistics import MARGIN

    if (options.plan is None) == (options.second is None) or (options.plan is not None and options.first is not None):
        parser.error("ONE and OTHER, or --plan FILE, whose claims are all that it can confirm")
    if options.plan is not None and options.margin is not None:
        parser.error(f"--margin {options.margin:g}: is for ONE and OTHER; --plan FILE has the margin of its claims")
    plan = None if options.plan is None else plans.read(expanded(options.plan))
    study = records.read_study(expanded(options.outputs), options.study, options.model)
    margin = MARGIN if options.margin is None else options.margin
    said = plans.answers(study, plan) if plan else None
    for line in said or comparison.lines(study, options.first, options.second, margin):
        say(line)
    return 0


def flips(arguments: Sequence[str]) -> int:
    """`peftbench flips OLD NEW`: rows that an update turns wrong or right, beside what another seed alone does."""
    parser = Parser(prog="peftbench flips")
    parser.add_argument("old", help="folder of a finished run, or name of a study")
    parser.add_argument("new", help="likewise")
    parser.add_argument("--outputs", default="outputs", help="where the records lie")
    parser.add_argument("--old-row", help="a row of the old study's table; default: every row that both have")
    parser.add_argument("--new-row", help="a row of the new study's table")
    parser.add_argument("--without", help="a run or study without the update's objective: how many flips that saves")
    parser.add_argument("--without-row", help="a row of its table")
    parser.add_argument("--csv", action="store_true", help="one line per figure, for a program")
    parser.add_argument("--to", metavar="DIR", help="folder for a figure of it, as PNG, SVG and PDF")
    options = parser.parse_args(arguments)
    if options.without is None and options.without_row:
        raise ConfigError(f"--without-row {shown(options.without_row)}: of which study? --without says it")
    if options.csv and (other := options.without or options.to) is not None:
        word = "--without" if options.without is not None else "--to"
        raise ConfigError(f"{word} {shown(other)}: is for people; leave --csv out")
    from peftbench.commands import screen
    from peftbench.report import fewer_flips, flips, versions

    pairs, notes = versions.paired(
        options.old, options.new, expanded(options.outputs), options.old_row, options.new_row
    )
    compared = flips.between(pairs)
    notes += flips.constant(pairs)
    if options.csv:
        print(flips.csv(compared), end="")
        return 0
    if options.without is not None:
        others, _ = versions.paired(
            options.old, options.without, expanded(options.outputs), options.old_row, options.without_row
        )
        savings, alone = fewer_flips.between(pairs, others)
        notes = [*fewer_flips.lines(savings), *alone, *notes]
    screen.flips(compared, notes)
    if options.to is not None:
        from peftbench.report import plots
        from peftbench.report.figures.flips import updates

        for path in plots.save(updates(compared), {}, writable(Path(options.to))):
            print(path)
    return 0


def plot(arguments: Sequence[str]) -> int:
    """`peftbench plot STUDY --to DIR`: the study's figures as PNG, SVG and PDF."""
    parser = _study_parser("plot")
    parser.add_argument("--to", required=True, help="folder to write")
    options = parser.parse_args(arguments)
    from peftbench.report import plots, records

    study = records.read_study(expanded(options.outputs), options.study, options.model)
    for path in plots.save_all(study, writable(Path(options.to))):
        print(path)
    return 0


def report(arguments: Sequence[str]) -> int:
    """`peftbench report STUDY`: one HTML file with tables, plots and every run; with --serve a page that follows it."""
    parser = _study_parser("report")
    _add_shots(parser)
    parser.add_argument("--to", help="file to write; default: report.html in the study's folder")
    parser.add_argument("--paper", help="a word of conf/paper, whose figures stand beside ours")
    parser.add_argument("--data", metavar="DIR", help="where the rows lie; the page then shows scores on parts of them")
    _add_margin(parser)
    parser.add_argument("--old", metavar="STUDY", help="an earlier study; the page then shows which rows flipped since")
    parser.add_argument(
        "--serve",
        metavar="PORT",
        type=int,
        nargs="?",
        const=PORT,
        help="no file: a page on this machine that follows it",
    )
    options = parser.parse_args(arguments)
    if options.serve is not None and options.to:
        raise ConfigError(f"--to {shown(options.to)}: --serve writes no file; give one of the two")
    from peftbench import papers
    from peftbench.report import comparison, few, flips, page, records, versions
    from peftbench.report.statistics import MARGIN
    from peftbench.study.recorded import texts_of

    outputs = expanded(options.outputs)
    paper = papers.load(options.paper) if options.paper is not None else None
    texts = None if options.data is None else partial(texts_of, folder=options.data)
    margin = MARGIN if options.margin is None else options.margin
    comparison.check_margin(margin)

    def content(study: records.Study) -> dict[str, Any]:
        if not study.records:  # of a page that is there before the first
            return page.content(study, margin=margin)
        study = few.of_one_convention(study, options.shots)
        flipped = flips.between(versions.paired(options.old, options.study, outputs)[0]) if options.old else []
        return page.content(study, paper, flipped, texts, margin)

    if options.serve is not None:
        _follow(outputs, options, content)
        return 0
    # before a folder is made for it: there may be no such study
    made = content(records.read_study(outputs, options.study, options.model))
    path = Path(options.to) if options.to else outputs / options.study / "report.html"
    page.write(made, writable_file(path))
    print(path)
    return 0


def _follow(outputs: Path, options: Namespace, content: "Callable[[Study], dict[str, Any]]") -> None:
    """A page on this machine of what a study has so far."""
    from peftbench.report import records, serve
    from peftbench.study import status

    kept = serve.KeptRecords()

    def so_far() -> dict[str, Any]:
        return content(records.read_so_far(outputs, options.study, options.model, kept))

    def states() -> Iterable[tuple[str, int]]:
        return status.by_state(status.cells_of(outputs, options.study)).items()

    with serve.Server(options.serve) as server:
        live = serve.Live(outputs / options.study, so_far, states)
        print(f"{server.address} (Ctrl-C ends it)", flush=True)
        server.follow(live)


def submission(arguments: Sequence[str]) -> int:
    """`peftbench submission STUDY --method M --to ZIP`: the official GLUE zip; `--check ZIP` validates any."""
    parser = Parser(prog="peftbench submission")
    parser.add_argument("study", nargs="?", help="name of the study, a folder under the outputs")
    parser.add_argument("--outputs", default="outputs", help="where the records lie")
    parser.add_argument("--model", help="only this backbone; needed where the study has several")
    parser.add_argument("--method", help="whose runs are submitted, the best by dev score of each task")
    parser.add_argument("--to", default="submission.zip", help="file to write")
    parser.add_argument("--fill-majority", action="store_true", help="the majority class for tasks without a run")
    parser.add_argument("--check", metavar="ZIP", help="say what is wrong with a submission, and write nothing")
    options = parser.parse_args(arguments)
    from peftbench.report import records, submission

    if options.check is not None:
        if problems := submission.check(Path(options.check)):
            raise DataError(problems)
        print(f"{options.check}: eleven files as the server wants them")
        return 0
    if options.study is None or options.method is None:
        parser.error("a study and --method, or --check ZIP")
    study = records.read_study(expanded(options.outputs), options.study, options.model)
    to = writable_file(Path(options.to))
    for line in submission.write(study, options.method, to, options.fill_majority):
        print(line)
    print(options.to)
    return 0


def sync(arguments: Sequence[str]) -> int:
    """`peftbench sync STUDY`: send what W&B recorded offline, and log the study's table and figures as one run."""
    parser = _study_parser("sync")
    _add_shots(parser)
    parser.add_argument("--project", default="peftbench", help="W&B project of the table's run")
    options = parser.parse_args(arguments)
    from peftbench.report import few, records, sync
    from peftbench.runner.wandb_run import mode

    outputs = expanded(options.outputs)
    study = records.read_study(outputs, options.study, options.model)
    shown_study = few.of_one_convention(study, options.shots)
    runs = sync.offline_runs(study)
    sync.send(runs, mode("auto"))
    print(f"{quantity(len(runs), 'run')} sent")
    print(sync.log_study(shown_study, writable(outputs / options.study), options.project, mode("auto")))
    return 0


def _study_parser(command: str) -> Parser:
    parser = Parser(prog=f"peftbench {command}")
    parser.add_argument("study", help="name of the study, a folder under the outputs")
    parser.add_argument("--outputs", default="outputs", help="where the records lie")
    parser.add_argument("--model", help="only this backbone, or all; needed where the study has several")
    return parser


def _add_margin(parser: Parser) -> None:
    parser.add_argument("--margin", type=number, help="points within which two methods count as equal; default: 1")


def _add_shots(parser: Parser) -> None:
    words = ("per_class", "total")
    parser.add_argument("--shots", choices=words, help="only this way of counting few labels; needed if it has both")
