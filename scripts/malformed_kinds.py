"""The kinds of malformed words that `malformed.py` gives the command: each makes many, from the fields of a cell."""

import itertools
from collections.abc import Iterator

from malformed_input import SHOWN, TINY, Input, beside, fields  # type: ignore[import-not-found]

from peftbench.config import compose

NUMBERS = ("99999999999999999999999999", "-7", "nan", "inf", "many", "[3,x]", "{a: 1}", "true", "''")
FREE = ("method.default_lr",)  # decides nothing where protocol.lr is given
WHOLE = (
    "protocol.max_steps",
    "protocol.patience",
    "data.limit",
    "budget.entries",
    "select.max_steps",
)  # null by default


def numbers() -> Iterator[Input]:
    """Numbers that are too large, negative, no numbers, or none at all, in every field that holds one."""
    commands = itertools.cycle((["run"], ["count"], ["plan"], ["run", "-m"], ["plan"]))
    for key, (value, method) in fields().items():
        if key in FREE or not (type(value) in (int, float) or key in WHOLE):
            continue
        command = next(commands)
        for number in NUMBERS:
            if (key, number) in ALLOWED:
                continue
            words = [*command, *TINY, f"method={method}", f"{key}={number}"]
            yield Input(f"number: {number[:12]}", words, [beside(key, number)])


ALLOWED = {("protocol.evaluate_every", "7")}  # pairs that mean something


def types() -> Iterator[Input]:
    """A list, a mapping, a number where a word, a switch or a list belongs."""
    for key, (value, method) in fields().items():
        if key.startswith(("model.layout", "method.strata", "method.elsewhere")):
            continue
        wrong = {str: ("{a: 1}", "[a]", "7"), bool: ("3", "perhaps", "[]"), list: ("word", "{a: 1}", "[[]]")}
        for text in wrong.get(type(value), ()):
            if (key, text) in ALLOWED:
                continue
            yield Input("type", ["run", *TINY, f"method={method}", f"{key}={text}"], [beside(key, text)])


GROUPS = ("model", "task", "data", "method", "scope", "budget", "protocol", "select", "tracker", "experiment")


def words() -> Iterator[Input]:
    """Words that no group has, near misses, paths, nothing, several where one belongs."""
    for group in GROUPS:
        known = compose.words(group)
        misses = {f"{known[0]}x", known[-1][1:] or "x", known[0].upper(), f"nope-{group}", "x" * 3000}
        for word in sorted(misses - set(known)):
            for command in ("run", "count"):
                yield Input("word", [command, *TINY, f"{group}={word}"], [group, word[:20]])
        for word in (f"../{group}/{known[0]}", f"/etc/{known[0]}", "..", "a\\b"):
            yield Input("word: path", ["run", *TINY, f"{group}={word}"], [group])
        yield Input("word: sweep", ["run", *TINY, f"{group}={known[0]},{known[-1]}x"], [group])
        yield Input("word: sweep", ["run", "-m", *TINY, f"{group}={known[0]},nope"], [group, "nope"])
    for key in ("sed", "learning_rate", "protocol.lrr", "method.rnak", "a.b.c", "+protocol.momentum", "++tracker.x"):
        for alone in ("run", "count", "plan"):
            yield Input("key", [alone, *TINY, f"{key}=1"], [key.strip("+")])
    for word in ("lora", "=", "=lora", "protocol.lr", "1", "~nothing.here"):
        yield Input("key", ["run", *TINY, word], [word.strip("~")])
    for key in ("outputs", "study", "cache", "rerun", "cells_per_gpu"):
        for line in (["run", "-m"], ["plan"]):
            yield Input("sweep of one", [*line, *TINY, f"{key}=a,b"], [f"{key}=a,b"])
    for text in ("range(3", "choice(", "glob(", "1,,2", "0,"):
        for line in (["run", "-m"], ["plan", "-m"], ["count", "-m"]):
            yield Input("sweep", [*line, *TINY, f"seed={text}"], [f"seed={text}"])
    for alone in ("count", "plan"):
        yield Input("sweep", [alone, "-m", *TINY, "method=lara,lroa"], ["method=l"])


def quoting() -> Iterator[Input]:
    """Paths with signs that Hydra reads otherwise."""
    for sign in ("=", "#", "(", ")", ",", "[", "{", "'", '"', "$", "${", "${nope}", "\t", "\\"):
        for key in ("data.path", "outputs", "model.weights", "init_from"):
            extra = ["data=folder"] if key == "data.path" else []
            value = f"/proc/nowhere/a{sign}b {sign}"
            line = ["run", *TINY, *extra, f"{key}={value}"]
            yield Input("quoting", line, [key.rpartition(".")[2], value[:SHOWN]])


def _named_setting(group: str, word: str) -> list[str | tuple[str, ...]]:
    """The key of a setting and, where there is such a key, its value."""
    key, _, value = word.partition("=")
    return [f"{group}.{key}"] if key == "nope" else [f"{group}.{key}", beside(key, value)]


def hydras() -> Iterator[Input]:
    """Hydra's own settings, launchers, and switches."""
    for key in ("hydra.nope=1", "hydra.run.nope=1", "hydra.verbose.a=1", "hydra=1"):
        for command in (["run"], ["run", "-m"]):
            yield Input("hydra key", [*command, *TINY, key], [key.strip("+").partition("=")[0]])
    for group in ("launcher", "sweeper", "job_logging", "hydra_logging", "help", "output"):
        for command in (["run"], ["run", "-m"]):
            yield Input("hydra word", [*command, *TINY, f"hydra/{group}=nope"], [f"hydra/{group}", "nope"])
    for switch in ("--config-name=other", "--config-dir=/nowhere", "--config-path=/nowhere", "--package=x"):
        yield Input("hydra switch", ["run", *TINY, switch], [switch.partition("=")[0]])
    for launcher in ("joblib", "local"):
        for value in ("n_jobs=0", "n_jobs=x", "n_jobs=99999999999999999999", "batch_size=-3", "nope=1"):
            words = ["run", "-m", *TINY, "seed=0,1", f"hydra/launcher={launcher}", f"hydra.launcher.{value}"]
            yield Input("launcher", words, _named_setting("hydra.launcher", value))
    for value in ("timeout_min=x", "timeout_min=-1", "nope=1"):
        words = ["run", "-m", *TINY, "hydra/launcher=submitit_local", f"hydra.launcher.{value}"]
        yield Input("launcher", words, _named_setting("hydra.launcher", value))
    for folder in ("hydra.run.dir=/dev/null/x", "hydra.sweep.dir=/proc/x", "hydra.output_subdir=/proc/x"):
        yield Input("hydra folder", ["run", *TINY, folder], [folder.partition("=")[0]])


def architectures() -> Iterator[Input]:
    """Numbers and words of which no backbone can be made."""
    for key, value in {
        "model.config.hidden_act": "gelo", "model.model_type": "nope", "model.config.num_hidden_layers": "1000000",
        "model.config.num_attention_heads": "7", "model.config.hidden_size": "129",
        "model.config.vocab_size": "0", "model.config.pad_token_id": "2000", "protocol.epochs": "1000000000",
        "protocol.max_length": "100000", "model.layout.depth": "nope", "model.layout.layers": "nope",
    }.items():  # fmt: skip
        for command in (["run"], ["count"], ["run", "-m"]):
            yield Input("architecture", [*command, *TINY, f"{key}={value}"], [beside(key, value)])


PAIRS: tuple[tuple[str, ...], ...] = (  # words that are possible alone and not together
    ("budget.entries=5000", "budget.fraction=0.1"),
    ("method=head", "budget.entries=5000"),
    ("method=full", "budget.fraction=0.25"),
    ("shots.per_class=3", "shots.total=8"),
    ("shots.total=1", "task=rte"),
    ("shots.stratified=true", "shots.per_class=3"),
    ("shots.dev=same", "shots.split=2"),
    ("shots.total=8", "protocol.selection=held_out"),
    ("select.factors=[0.3,1]", "select.trials=4"),
    ("select.rule=one_se", "select.trials=4"),
    ("select.head_factors=[0.3,1]", "select.factors=null"),
    ("select.head_factors=[0.3,1]", "select.factors=[0.3,1]"),
    ("protocol.accumulation=33", "protocol.batch_size=32"),
    ("init_head=kept", "init_from=null"),
    ("readout.head=rows", "readout.kind=classifier"),
    ("selftrain=list", "task=stsb"),
    ("selftrain=list", "shots.total=null"),
    ("selftrain.kind=list", "selftrain.steps=0", "selftrain.epochs=0"),
    ("objective.old=/nowhere/run", "objective.kind=task"),
    ("task=joint", "task.tasks=[rte]"),
    ("task=joint", "task.tasks=[rte,rte]"),
    ("task=joint", "task.tasks=[rte,nope]"),
    ("task.labels=[yes,no,perhaps]", "task.folder.label_values=[1,2]"),
    ("task.metrics=[pearson]", "task.labels=[yes,no]"),
    ("task.headline=pearson", "task.metrics=[accuracy]"),
    ("task.dev=[train]", "task.train=train"),
    ("task.score_range=[5,0]", "task=stsb"),
    ("scope.layers=2-9", "model=bert_tiny"),
    ("scope.layers=[0,99]", "scope.kinds=[query]"),
)
IN_A_MODEL: tuple[tuple[str, ...], ...] = (  # likewise, as a model shows that has the shapes: `plan` makes none
    ("method=adalora", "method.initial=3", "method.final=3"),
    ("method=adalora", "method.target_rank=13", "method.rank=8"),
    ("method=lora", "budget.entries=3"),
    ("method=id3", "budget.entries=2000000000"),
)


def pairs() -> Iterator[Input]:
    """Words that cannot be true together: a key that makes it so is named, with its value."""
    for words in (*PAIRS, *IN_A_MODEL):
        naming: tuple[str, ...] = tuple(form for word in words for form in beside(*word.split("=", 1)))
        naming += tuple(
            f"budget: {int(word.partition('=')[2]):,} " for word in words if word.startswith("budget.entries")
        )
        for command in (["run"], ["run", "-m"], *([] if words in IN_A_MODEL else [["count"], ["plan"]])):
            typed = [word for word in TINY if word.partition("=")[0] not in "".join(words)]
            yield Input("pair", [*command, *typed, *words], [naming])


def devices() -> Iterator[Input]:
    """Devices, which no key chooses: the words that other programs have for them."""
    for word in ("model.device=cuda", "device=cuda:9", "device=tpu", "protocol.device=cpu", "n_gpu=-1", "gpus=2"):
        for command in (["run"], ["count"], ["plan"], ["run", "-m"]):
            yield Input("device", [*command, *TINY, word], [word.partition("=")[0]])
    for word in ("protocol.precision=fp8", "protocol.precision=int4", "cells_per_gpu=none", "progress=cuda"):
        naming = beside(*word.split("=", 1))
        for command in (["run"], ["count"], ["plan"], ["run", "-m"]):
            yield Input("device", [*command, *TINY, word], [naming])


SPACES = {  # what no search can have -> what of it the line must hold
    "protocol.lr=interval(1e-2,1e-4)": "lr=interval(1e-2", "protocol.lr=interval(0,x)": "lr=interval(0,x",
    "protocol.lr=tag(log,interval(-1,1))": "lr=tag(log,i", "protocol.lr=interval(-1,1)": "lr=-1",
    "protocol.lr=tag(loud,interval(0.1,1))": "loud", "protocol.lr=interval(0,1e99)": "1e99",
    "protocol.lr=interval(nan,1)": "interval(nan", "protocol.lrr=interval(0,1)": "lrr",
    "protocol.schedule=interval(0,1)": "schedule", "protocol.schedule=choice(linear,liner)": "schedule=liner",
    "protocol.lr=choice()": "lr=choice(", "protocol.epochs=range(3,3)": "epochs=range(",
    "method=interval(0,1)": "method",
    "protocol.epochs=range(0,9999999)": "epochs=range(", "method=choice(lora,lara)": "lara",
    "seed=interval(0,9)": "seed=",
    "study=choice(a,b)": "study", "outputs=choice(a,b)": "outputs", "seed=0": "interval(LOW,HIGH)",
}  # fmt: skip


def searches() -> Iterator[Input]:
    """Spaces and settings that no search of keys can have."""
    optuna = [*TINY, "hydra/sweeper=optuna"]
    for word, naming in SPACES.items():
        yield Input("search", ["run", "-m", *optuna, word], [naming])
        yield Input("search", ["plan", *optuna, word], [naming])
    yield Input("search", ["run", *optuna, "protocol.lr=interval(0.1,1)"], ["hydra/sweeper=optuna", "-m"])
    for switch in ("--save", "--register=plan.yaml"):
        yield Input("search", ["plan", *optuna, "protocol.lr=interval(0.1,1)", switch], ["hydra/sweeper=optuna"])
    for key in ("trials", "at_once", "seed", "nope"):
        for value in ("x", "-1", "nan", "1.5", "[3,x]", "9" * 20):
            line = ["run", "-m", *optuna, "protocol.lr=interval(0.1,1)", f"hydra.sweeper.{key}={value}"]
            yield Input("search", line, [f"hydra.sweeper.{key}", *([] if key == "nope" else [beside(key, value)])])


KINDS = (numbers, types, words, quoting, hydras, architectures, pairs, devices, searches)
