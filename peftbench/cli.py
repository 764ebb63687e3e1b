"""The `peftbench` command. It imports nothing heavy before it knows what is asked."""

import gc
import importlib
import os
import sys

HELP = """peftbench: parameter-efficient fine-tuning methods compared on GLUE

usage: peftbench COMMAND [...]

  run [OVERRIDES]         run one cell; with -m a sweep (a Hydra application: --help, --cfg job, -m work)
  plan [OVERRIDES]        what a sweep would run, and about how long it would take, before anything starts
  status STUDY            how a sweep stands: done, running, failed, stopped, missing, time left
  count [OVERRIDES]       how many entries would train, without weights; of several cells a table; --json
  list [GROUP]            the words that can be chosen: models, tasks, methods, data, protocols, ...
  count --paper PAPER     every trainable count that a paper states, against ours
  reproduce PAPER         the sweep that would make a paper's table; --dry-run says what it is
  table STUDY             a study's results, one row per method; --paper, --format md, latex, html, csv
  compare STUDY ONE OTHER whether one method beats another, in words and numbers
  plot STUDY --to DIR     score against entries, time and memory; curves; seeds; as PNG and PDF
  report STUDY            one HTML file: table, plots, every run
  submission STUDY        the official GLUE zip of --method; --check ZIP validates any
  sync STUDY              send what W&B recorded offline, and the study's table and figures as one run
  apply RUN --output DIR  the run's model, merged, as a plain transformers folder
  predict RUN FILE.tsv    the run's labels for new rows
  export RUN --to DIR     a LoRA run's adapter in PEFT's format

examples:
  peftbench run                                        LoRA on the built-in sample, offline
  peftbench run task=mrpc method=bitfit data=folder data.path=GLUE
  peftbench run -m study=pilot method=full,lora task=rte,mrpc seed=0,1,2
  peftbench count model=bert_large_cased method=lora method.rank=64

exit codes: 0 done, 1 a run failed or cells of a sweep were left, 2 wrong configuration, 3 wrong or missing data or
            weights, 4 training diverged, 75 another runner has the cell, 100 + n: n cells of a sweep failed,
            130 and 143 stopped by a signal
shell completion: eval "$(peftbench run -sc install=bash)"
"""

# Command -> the module of `peftbench.commands` and the function in it.
COMMANDS = {
    "run": ("run", "run"),
    "plan": ("studies", "plan"),
    "status": ("studies", "status"),
    "count": ("count", "count"),
    "list": ("words", "list_words"),
    "reproduce": ("studies", "reproduce"),
    "table": ("views", "table"),
    "compare": ("views", "compare"),
    "plot": ("views", "plot"),
    "report": ("views", "report"),
    "submission": ("views", "submission"),
    "sync": ("views", "sync"),
    "apply": ("use", "apply"),
    "predict": ("use", "predict"),
    "export": ("use", "export"),
}


def main() -> None:
    """Entry point of the `peftbench` command and of `python -m peftbench`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from peftbench import __version__

        print(__version__)
        sys.exit(0)
    command, rest = arguments[0], arguments[1:]
    if command in ("-sc", "--shell-completion"):
        # Hydra's completion script asks the program itself; the word "run" is no override.
        os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace(" run ", " ", 1)
        command, rest = "run", arguments
    if command not in COMMANDS:
        from peftbench.errors import near

        print(f"peftbench {command}: no such command; {near(command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)

    gc.set_threshold(50_000)  # objects: imports make a million that stay; looking for garbage among them took 0.5 s
    from peftbench.errors import BadInput

    module, function = COMMANDS[command]
    try:
        code = getattr(importlib.import_module(f"peftbench.commands.{module}"), function)(rest)
    except BadInput as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BaseException as stopped:  # `Stopped`, whose module a --help need not import
        if not hasattr(stopped, "exit_code"):
            raise
        print(f"{stopped}; the same command goes on from here", file=sys.stderr)
        code = int(stopped.exit_code)
    except BrokenPipeError:  # whoever read our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    gc.freeze()  # nor is it looked for at the end, another 0.8 s where torch was imported
    sys.exit(code)
