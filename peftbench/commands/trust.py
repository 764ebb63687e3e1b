"""`peftbench verify`, `collect`: records that others made, or other machines."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from peftbench.commands.parsing import Parser, count
from peftbench.commands.tables import paste
from peftbench.commands.use import known_classes
from peftbench.ground.errors import BadInput, short_line
from peftbench.ground.files import RECORD_FILE, expanded
from peftbench.ground.quantity import quantity

MOST_LINES = 12  # of differences that are shown for one record


def verify(arguments: Sequence[str]) -> int:
    """`peftbench verify STUDY|RECORD`: run records again and compare; exit code 1 where one differs."""
    parser = Parser(prog="peftbench verify")
    parser.add_argument("what", help="name of a study under the outputs, or the folder or file of a record")
    parser.add_argument("--outputs", default="outputs", help="where the records lie")
    parser.add_argument("--sample", type=count, default=20, help="so many records of a study; default 20")
    parser.add_argument("--searchpath", help="folder of your own yaml files, where the records were made with some")
    options = parser.parse_args(arguments)
    from peftbench.study import verify

    if options.searchpath is not None:
        known_classes(options.searchpath)  # refused once, not for every record
    place = expanded(options.what)
    where = place if place.exists() else expanded(options.outputs) / options.what
    paths, artefacts = verify.records_of(where, options.sample)
    compared, refused = [], 0
    for path in paths:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                agreement, _ = verify.verify(path, Path(scratch), options.searchpath)
            except BadInput as error:
                refused = error.exit_code
                problem = error.every[0].removeprefix(f"{path}: ")
                named = path.parent if path.name == RECORD_FILE else path
                paste(short_line(f"not run: {named}: {problem}"))
                continue
        compared.append(agreement)
        paste(f"{agreement.verdict}: {path.parent}")
        for line in [*agreement.made, *agreement.causes][:MOST_LINES] if agreement.made else []:
            paste(f"  {line}")
    left_out = f"; {quantity(artefacts, 'artefact')} left out" if artefacts else ""
    paste(f"{quantity(len(paths), 'record')} run again: {verify.counted(compared) or 'none'}{left_out}")
    return 1 if any(one.verdict == "differs" for one in compared) else refused


def collect(arguments: Sequence[str]) -> int:
    """`peftbench collect FOLDER...`: one study from several machines; records that disagree are refused."""
    parser = Parser(prog="peftbench collect")
    parser.add_argument("folders", nargs="+", help="folders of one study, copied from the machines")
    parser.add_argument("--outputs", default="outputs", help="where the study is put together")
    options = parser.parse_args(arguments)
    from peftbench.lifecycle import saved_lines
    from peftbench.study import collect

    folders, outputs = [expanded(folder) for folder in options.folders], expanded(options.outputs)
    target = outputs / folders[0].resolve().name
    lines = saved_lines.united([target, *folders])  # what is wrong with them is said before anything is copied
    copied, twice = collect.collect(folders, outputs)
    saved_lines.keep(target, lines)
    before = quantity(twice, "was there before and agrees", "were there before and agree")
    print(f"{quantity(copied, 'cell')} copied" + (f", {before}" if twice else ""))
    return 0
