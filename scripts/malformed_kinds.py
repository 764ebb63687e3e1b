"""The kinds of malformed input that `malformed.py` gives the command: each makes many, from fields and commands."""

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.config import compose

TINY = [
    "model=bert_tiny", "model.weights=random", "model.config.vocab_size=2000", "data.limit=48", "tracker=none",
    "protocol.max_steps=2", "progress=false",
]  # fmt: skip
Prepare = Callable[[Path], object]  # makes the files of an input in its folder


@dataclass(frozen=True)
class Input:
    """One malformed input.

    Attributes:
        words: the command line after `peftbench`.
        naming: what its lines must contain.
        files: called with the folder that the command runs in.
        environment: variables on top of this process's.
    """

    kind: str
    words: Sequence[str]
    naming: Sequence[str]
    files: Prepare | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a nested mapping that holds no mapping, and its value."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def fields() -> dict[str, tuple[Any, str]]:
    """Every key that a cell may have -> its value, and a method that has it."""
    values: dict[str, tuple[Any, str]] = {}
    for method in compose.words("method"):
        cell = compose.resolved(compose.load([*TINY, f"method={method}"]))
        for key, value in leaves(cell):
            values.setdefault(key, (value, method))
    return values


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
            yield Input(f"number: {number[:12]}", words, [key.rpartition(".")[2]])


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
            yield Input("type", ["run", *TINY, f"method={method}", f"{key}={text}"], [key.rpartition(".")[2]])


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
            yield Input("sweep of one", [*line, *TINY, f"{key}=a,b"], [key])
    for text in ("range(3", "choice(", "glob(", "1,,2", "0,"):
        for line in (["run", "-m"], ["plan", "-m"], ["count", "-m"]):
            yield Input("sweep", [*line, *TINY, f"seed={text}"], ["seed"])
    for alone in ("count", "plan"):
        yield Input("sweep", [alone, "-m", *TINY, "method=lara,lroa"], ["method=l"])


def quoting() -> Iterator[Input]:
    """Paths with signs that Hydra reads otherwise."""
    for sign in ("=", "#", "(", ")", ",", "[", "{", "'", '"', "$", "${", "${nope}", "\t", "\\"):
        for key in ("data.path", "outputs", "model.weights", "init_from"):
            extra = ["data=folder"] if key == "data.path" else []
            yield Input(
                "quoting", ["run", *TINY, *extra, f"{key}=/proc/nowhere/a{sign}b {sign}"], [key.rpartition(".")[2]]
            )


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
            yield Input("launcher", words, [f"hydra.launcher.{value.partition('=')[0]}"])
    for value in ("timeout_min=x", "timeout_min=-1", "nope=1"):
        words = ["run", "-m", *TINY, "hydra/launcher=submitit_local", f"hydra.launcher.{value}"]
        yield Input("launcher", words, [f"hydra.launcher.{value.partition('=')[0]}"])
    for folder in ("hydra.run.dir=/dev/null/x", "hydra.sweep.dir=/proc/x", "hydra.output_subdir=/proc/x"):
        yield Input("hydra folder", ["run", *TINY, folder], [folder.partition("=")[0]])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in itertools.pairwise("abcdefgh")
)
BITFIT = "_target_: peftbench.methods.bitfit.BitFit\ndefault_lr: 1.0e-3\n"
YAMLS: dict[str, str | bytes] = {
    "anchor loop": "a: &a [*a]\n", "alias bomb": BOMB, "3,000 levels": "[" * 3000 + "]" * 3000,
    "tabs": f"{BITFIT}\tkinds: null\n", "not UTF-8": b"\xff\xfe\x00", "NUL": b"a: \x00\n", "empty": "",
    "list": "- a\n", "text": "just words\n", "no target": "default_lr: 1.0e-3\n", "cut": BITFIT + "kinds: [query",
    "defaults loop": f"defaults: [mine]\n{BITFIT}", "defaults nowhere": f"defaults: [nope]\n{BITFIT}",
    "defaults no list": f"defaults: 3\n{BITFIT}", "interpolation loop": f"{BITFIT}kinds: ${{method.kinds}}\n",
    "interpolation": f"{BITFIT}kinds: ${{nope.nope}}\n", "resolver": f"{BITFIT}kinds: ${{eval:1}}\n",
    "environment": f"{BITFIT}kinds: ${{oc.env:NOPE_NOPE}}\n", "no class": "_target_: no.such.Thing\ndefault_lr: 1\n",
    "function": "_target_: os.system\ndefault_lr: 1.0e-3\n", "key": f"{BITFIT}knids: null\n",
    "python tag": f"{BITFIT}kinds: !!python/object/apply:os.system [ls]\n", "date": f"{BITFIT}kinds: 2020-01-01\n",
    "twice": f"{BITFIT}default_lr: 2.0e-3\n", "word": f"{BITFIT}kinds: [biases]\n",
    "rate": BITFIT.replace("1.0e-3", "x"),
}  # fmt: skip


def yamls() -> Iterator[Input]:
    """A user's own yaml files, damaged or with what they must not hold."""

    def put(text: str | bytes) -> Prepare:
        def files(folder: Path) -> None:
            (folder / "conf" / "method").mkdir(parents=True)
            content = text if isinstance(text, bytes) else text.encode()
            (folder / "conf" / "method" / "mine.yaml").write_bytes(content)

        return files

    for name, text in YAMLS.items():
        for command in (["run"], ["count"], ["plan"], ["run", "-m"]):
            line = [*command, *TINY, "hydra.searchpath=[file://conf]", "method=mine"]
            yield Input(f"yaml: {name}", line, [], put(text))


def outputs() -> Iterator[Input]:
    """Places that cannot be written: a file, a device, the root of a system's own file systems."""

    def a_file(folder: Path) -> None:
        (folder / "taken").write_text("a file")

    for place in ("taken", "taken/in", "/dev/null", "/dev/null/x", "/proc/x", "/sys/x", "x" * 300, "a/" * 2100):
        yield Input("output", ["run", *TINY, f"outputs={place}"], ["outputs", place[:12]], a_file)
        yield Input("output", ["run", "-m", *TINY, f"outputs={place}"], [place[:12]], a_file)
        yield Input("cache", ["run", *TINY, f"cache={place}"], ["cache", place[:12]], a_file)
    for variable in ("PEFTBENCH_CACHE",):
        for place in ("taken", "/proc/x", "/dev/null/x"):
            yield Input("cache", ["run", *TINY], ["cache"], a_file, {variable: place})


HEADERS = {"rte": ("RTE", "index\tsentence1\tsentence2\tlabel\n", "0\ta\tb\tentailment\n"),
           "sst2": ("SST-2", "sentence\tlabel\n", "fine\t1\n"),
           "stsb": ("STS-B", "index\tgenre\tsentence1\tsentence2\tscore\n", "0\tnews\ta\tb\t3\n")}  # fmt: skip
DAMAGE: dict[str, Callable[[str, str], bytes]] = {
    "empty": lambda head, row: b"", "header only": lambda head, row: head.encode(),
    "cut": lambda head, row: (head + row * 3)[:-6].encode(),
    "NUL": lambda head, row: (head + row).encode() + b"\0\0\t\n",
    "commas": lambda head, row: (head + row).replace("\t", ",").encode(),
    "other header": lambda head, row: (head.upper() + row).encode(),
    "column twice": lambda head, row: (head.strip() + "\t" + head.split("\t")[0].strip() + "\n" + row).encode(),
    "CR only": lambda head, row: (head + row * 3).replace("\n", "\r").encode(),
    "binary": lambda head, row: bytes(range(256)) * 9, "UTF-16": lambda head, row: (head + row).encode("utf-16"),
    "label": lambda head, row: (head + row + row.rsplit("\t", 1)[0] + "\t77\n").encode(),
    "no label": lambda head, row: (head + row + row.rsplit("\t", 1)[0] + "\t\n").encode(),
    "fields": lambda head, row: (head + row + row.strip() + "\tmore\n").encode(),
    "codes": lambda head, row: (head.replace("label", "\x1b[31m").replace("score", "\x1b[31m") + row).encode(),
    "megabytes": lambda head, row: ("x" * 3_000_000 + "\t" + head + row).encode(),
}  # fmt: skip


def data() -> Iterator[Input]:
    """Files of rows that are damaged, or others."""

    def put(name: str, content: bytes) -> Prepare:
        def files(folder: Path) -> None:
            (folder / "glue" / name).mkdir(parents=True)
            for split in ("train.tsv", "dev.tsv"):
                (folder / "glue" / name / split).write_bytes(content)

        return files

    for task, (name, head, row) in HEADERS.items():
        line = ["run", *TINY, f"task={task}", "data=folder", "data.path=glue"]
        for damage, make in DAMAGE.items():
            yield Input(f"data: {damage}", line, ["train.tsv"], put(name, make(head, row)))


def a_model(folder: Path) -> Path:
    """Write a whole small backbone with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizerFast

    place = folder / "weights"
    place.mkdir()
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **compose.cell_from(TINY).model.config)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(place)
    signs = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{sign}" for sign in signs)]
    (place / "vocab.txt").write_text("\n".join([*words, *(f"[unused{i}]" for i in range(2000 - len(words)))]))
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place)
    return place


def cut(name: str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[: (place / name).stat().st_size // 2])


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_text(text)


def remove(*names: str) -> Callable[[Path], object]:
    return lambda place: [(place / name).rename(place / f"{name}.gone") for name in names if (place / name).exists()]


def rename(name: str, other: str) -> Callable[[Path], object]:
    return lambda place: (place / name).rename(place / other)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "config cut": cut("config.json"), "config list": write("config.json", "[1]"),
    "config empty": write("config.json", ""), "config deep": write("config.json", "[" * 100_000),
    "config other": write("config.json", '{"model_type": "roberta"}'), "no config": remove("config.json"),
    "weights cut": cut("model.safetensors"), "weights empty": write("model.safetensors", ""),
    "weights text": write("model.safetensors", "no weights"), "no weights": remove("model.safetensors"),
    "pickle only": rename("model.safetensors", "pytorch_model.bin"),
    "shards": rename("model.safetensors", "model.safetensors.index.json"),
    "no tokenizer": remove("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"),
    "tokenizer cut": cut("tokenizer.json"), "tokenizer text": write("tokenizer.json", "no tokenizer"),
    "adapter": write("adapter_config.json", "{}"),
}  # fmt: skip


MODEL: list[Path] = []  # a whole folder of weights, from which damaged ones are made


def weights() -> Iterator[Input]:
    """Folders of weights that are damaged or not what they should be."""

    def put(break_it: Callable[[Path], object]) -> Prepare:
        return lambda folder: break_it(Path(shutil.copytree(MODEL[0], folder / "weights")))

    for name, break_it in FOLDERS.items():
        yield Input(f"weights: {name}", ["run", *TINY, "model.weights=weights"], ["weights"], put(break_it))
    for place in ("nowhere", "/dev/null", "/proc", "radnom", "x" * 5000):
        yield Input("weights: nowhere", ["run", *TINY, f"model.weights={place}"], ["model.weights", place[:12]])


def architectures() -> Iterator[Input]:
    """Numbers and words of which no backbone can be made."""
    for key, value in {
        "model.config.hidden_act": "gelo", "model.model_type": "nope", "model.config.num_hidden_layers": "1000000",
        "model.config.num_attention_heads": "7", "model.config.hidden_size": "129",
        "model.config.vocab_size": "0", "model.config.pad_token_id": "2000", "protocol.epochs": "1000000000",
        "protocol.max_length": "100000", "model.layout.depth": "nope", "model.layout.layers": "nope",
    }.items():  # fmt: skip
        for command in (["run"], ["count"], ["run", "-m"]):
            yield Input("architecture", [*command, *TINY, f"{key}={value}"], [key.rpartition(".")[2]])


def environments() -> Iterator[Input]:
    """Variables of the environment that say what cannot be."""
    wrong = {
        "RANK": ("x", "-1", "5"), "LOCAL_RANK": ("x", "9"), "WORLD_SIZE": ("x", "0", "2", "-1", "9" * 30),
        "WANDB_INIT_TIMEOUT": ("abc", "-1", "nan"), "WANDB_MODE": ("nope", "onlin"), "PYTHONOPTIMIZE": ("2",),
        "OMP_NUM_THREADS": ("x", "0", "-3", ""),
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            for command in ("run", "count", "plan"):
                yield Input("environment", [command, *TINY], [name, value[:12]], None, {name: value})


def commands() -> Iterator[Input]:
    """Commands without what they need, with too much, with switches and studies that are not there."""
    for word in ("runn", "train", "-x", "--versio", "x" * 5000, "\x1b[31m"):
        yield Input("command", [word], [word[:3].replace("\x1b", "\\x1b")])
    for command in ("status", "table", "report", "compare", "plot", "submission", "sync"):
        rest = {"compare": ["a", "b"], "plot": ["--to", "p"], "submission": ["--method", "m"]}.get(command, [])
        for study in ("nope", "../nope", "/nowhere", "x" * 300, "a\nb"):
            yield Input("study", [command, study, *rest], [study[:1]])
        yield Input("study", [command, *rest], ["study"])
        yield Input("switch", [command, "nope", *rest, "--colour"], ["--colour"])
    for command in ("apply", "predict", "export"):
        rest = {"apply": ["--output", "x"], "predict": ["x.tsv"], "export": ["--to", "x"]}[command]
        for run in ("nope", "/dev/null", "x" * 300):
            yield Input("run folder", [command, run, *rest], [run[:12]])
        yield Input("run folder", [command], ["run"])
    for words in (["reproduce"], ["reproduce", "nope"], ["count", "--paper", "nope"], ["list", "modls"],
                  ["submission", "--check", "nope.zip"], ["count", "--jsn"], ["table", "nope", "--paper", "nope"],
                  ["reproduce", "lora_roberta_base", "--as", "nope"],
                  ["reproduce", "lora_roberta_base", "--only", "nope"]):  # fmt: skip
        yield Input("argument", words, [words[-1] if len(words) > 1 else "paper"])


KINDS: tuple[Callable[[], Iterator[Input]], ...] = (
    numbers, types, words, quoting, hydras, yamls, outputs, data, weights, architectures, environments, commands,
)  # fmt: skip


def every() -> list[Input]:
    """All inputs, in a fixed order."""
    return [made for kind in KINDS for made in kind()]
