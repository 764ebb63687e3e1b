"""What the `peftbench` command does with its words. It imports nothing heavy before it knows what is asked."""

import codecs
import errno
import gc
import importlib
import io
import os
import re
import sys
from collections.abc import Callable

from peftbench.ground import environment
from peftbench.ground.errors import LONGEST_LINE, BadInput, ConfigError, near, shown
from peftbench.training import stopping

PLAIN = {"·": "-", "±": "+/-", "≈": "~", "–": "-", "…": "..."}  # for terminals that know only ASCII

HELP = """peftbench: compare parameter-efficient fine-tuning methods on GLUE

usage: peftbench COMMAND [...]

train:
  run [OVERRIDES]         run one cell, or a sweep with -m (a Hydra application: --help, --cfg job and -m work)
  plan [OVERRIDES]        list what a sweep would run and estimate the time; --save keeps the list for workers,
                          --register FILE writes down the cells (--saved, --saved-in DIR: those kept before,
                          too) and every --claim "a > b" for compare --plan
  count [OVERRIDES]       count the entries that would train, without weights; several cells give a table; --json
  count --paper PAPER     compare every trainable count stated in a paper with ours
  list [GROUP]            list the available models, tasks, methods, data sources, protocols, ...; without GROUP
                          these commands, too
  reproduce PAPER         run the sweep behind a paper's table; --dry-run only lists it
  convert FOLDER|HUB-NAME write model.safetensors for weights that are only a pickle (pytorch_model.bin);
                          model=WORD checks the pickle's hash
  backbone make=WORD      make a backbone from another (lowrank, mlm, merged): ... --to DIR, for model.weights=DIR

many machines:
  work STUDY              run the open cells of a study listed by plan --save, then its artefacts (merge --save, ...);
                          start it on as many machines as you like
  stop STUDY              ask all workers of a study to leave after their current step
  status STUDY            show the progress of a sweep: done, running, failed, stopped, missing, time left;
                          --watch, --json
  verify STUDY|RECORD     run records again and report differences, bit for bit on a CPU
  collect FOLDER...       combine one study from several machines; records that disagree are rejected

results:
  table STUDY             show a study's results, one row per method; --paper, --format for a file, --show
                          for other views than scores: table --help lists both
  compare STUDY ONE OTHER test whether one method beats another, in words and numbers
  plot STUDY --to DIR     draw score against entries, time and memory; curves; seeds; as PNG, SVG, PDF
  report STUDY            write one HTML file: table, plots, every run
  submission STUDY        write the official GLUE zip of --method; --check ZIP validates any zip
  sync STUDY              upload what W&B recorded offline, and the study's table and figures as one run

after a run:
  apply RUN --output DIR  write the run's merged model as a plain transformers folder
  predict RUN FILE.tsv    predict labels for new rows
  export RUN --to DIR     write the adapter of LoRA, or of a peft type, in PEFT's format
  flips OLD NEW           count the rows that an update gets wrong or right, compared with another seed alone;
                          runs or studies; --without OTHER: how many flips that saves beside OTHER
  score RUN task=WORD     score the run on another task with the same labels: a row of its study's table
  forgetting STUDY|RUN    measure what the backbone lost: similarity of sentences, or with --text masked tokens;
                          table --show forgetting
  merge from=STUDY ...    merge the runs of method= on all tasks into one backbone, merge=ties,pcb,...: table rows
  port from=STUDY ...     move what old runs learned to a newer backbone, model=NEWER, port.steps=0,50: table rows
  sequence learner=WORD   learn the classes of several tasks one task after the other, learner=mos,simplecil,...,
                          order=0,1,2; table STUDY --show sequences
  edit RUN ...            make an answer of the run rarer by moving rows of its weights, edit.behaviour=WORD,
                          beside controls and other tasks' runs: table rows

examples:
  peftbench run                                        LoRA on the built-in sample, offline
  peftbench run task=mrpc method=bitfit data=folder data.path=GLUE
  peftbench run -m study=pilot method=full,lora task=rte,sst2 seed=0,1,2
  peftbench count model=bert_large_cased method=lora method.rank=64

exit codes: 0 done, 1 a run failed or cells of a sweep are left, 2 wrong configuration or a folder that is not
            writable, 3 wrong or missing data or weights, 4 training diverged, 75 another runner has the cell,
            76 a worker was stopped, 100 + n: n cells of a sweep failed, 128 + n: stopped by signal n
            (130 Ctrl-C, 143 SIGTERM)
shell completion: eval "$(peftbench run -sc install=bash)"
"""

# Command -> the module of `peftbench.commands` and the function in it.
COMMANDS = {
    "run": ("run", "run"),
    "plan": ("studies", "plan"),
    "status": ("studies", "status"),
    "work": ("work", "work"),
    "stop": ("work", "stop"),
    "verify": ("trust", "verify"),
    "collect": ("trust", "collect"),
    "count": ("count", "count"),
    "list": ("words", "list_words"),
    "reproduce": ("studies", "reproduce"),
    "table": ("views", "table"),
    "compare": ("views", "compare"),
    "flips": ("views", "flips"),
    "plot": ("views", "plot"),
    "report": ("views", "report"),
    "submission": ("views", "submission"),
    "sync": ("views", "sync"),
    "apply": ("use", "apply"),
    "predict": ("use", "predict"),
    "export": ("use", "export"),
    "score": ("artefacts", "score"),
    "forgetting": ("artefacts", "forgetting"),
    "merge": ("artefacts", "merge"),
    "port": ("artefacts", "port"),
    "sequence": ("artefacts", "sequence"),
    "edit": ("artefacts", "edit"),
    "convert": ("use", "convert"),
    "backbone": ("use", "backbone"),
}

BY_WORDS = ("plan", "count", "list")  # take words of the configuration, and have no parser that would explain them


def main() -> None:
    """Do what the command line asks, and leave the process."""
    stopping.leave_on_signals()
    codecs.register_error("plain", _plain)
    if isinstance(sys.stdout, io.TextIOWrapper):  # it is None where the shell closed it (>&-)
        sys.stdout.reconfigure(errors="plain")
    code = _guarded(lambda: _answer(sys.argv[1:]))
    stopping.leave_at_once()
    gc.freeze()  # garbage is not looked for at the end, another 0.8 s where torch was imported
    sys.exit(code)


def _answer(arguments: list[str]) -> int:
    """Do what is asked; gives the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from peftbench.ground.version import __version__

        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command in ("-sc", "--shell-completion"):
        # Hydra's completion script asks the program itself; the word "run" is no override.
        os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace(" run ", " ", 1)
        command, rest = "run", arguments
    if command not in COMMANDS:
        raise ConfigError(f"peftbench {command}: no such command; {near(command, COMMANDS)}")
    if command in BY_WORDS and {"-h", "--help"} & set(rest):
        print(usage(command))
        return 0

    environment.prepare()
    gc.set_threshold(50_000)  # objects: imports make a million that stay; looking for garbage among them took 0.5 s
    module, function = COMMANDS[command]
    return int(getattr(importlib.import_module(f"peftbench.commands.{module}"), function)(rest))


def commands() -> str:
    """All commands by group, as the help explains them."""
    return HELP[HELP.index("train:\n") : HELP.index("examples:\n")]


def usage(command: str) -> str:
    """What the help says of a command, and what its words are."""
    entries = re.findall(rf"^  {command} .*\n(?: {{9,}}.*\n)*", HELP, re.MULTILINE)
    words = "GROUP: a configuration group, such as model or method; without one, all commands and groups are listed."
    if command != "list":
        words = "OVERRIDES: as for `peftbench run`, group=name or key=value; `peftbench list` shows the groups."
    return "".join(["usage: peftbench\n", *entries, words])


def _guarded(answer: Callable[[], int]) -> int | str | None:
    """The exit code of what `answer` does, also where it ends early; one line says why."""
    try:
        try:
            code: int | str | None = answer()
        except SystemExit as ended:  # argparse's
            code = ended.code
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BaseException as error:
        # Code that a signal reached may have made another exception of what it raised.
        stopped = error if isinstance(error, stopping.Stopped) else stopping.stopped()
        if stopped is not None:
            print(f"{stopped}; the same command goes on from here", file=sys.stderr)
            return stopped.exit_code
        if isinstance(error, BadInput):
            for problem in error.problems:
                print(problem, file=sys.stderr)
            return error.exit_code
        if isinstance(error, OSError):
            return _not_written(error)
        raise


def _not_written(error: OSError) -> int:
    """The exit code where something could not be written: a file, or, where a system's error names none, the output."""
    place = error.filename or type(error).__name__
    if error.filename is None and error.errno is not None:
        place = "output"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be flushed goes nowhere
    if isinstance(error, BrokenPipeError):  # whoever read our output (head, less) has seen enough
        return 0
    print(f"{shown(str(place))}: {shown(error.strerror or error, LONGEST_LINE)}", file=sys.stderr)
    return 2 if error.errno == errno.ENAMETOOLONG else 1  # no machine has such a place: it was mistyped


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that the terminal's encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end
