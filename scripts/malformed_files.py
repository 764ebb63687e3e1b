"""The kinds of malformed files that `malformed.py` puts before the command: yaml, rows, weights, places to write."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from malformed_input import SHOWN, TINY, Input, Prepare  # type: ignore[import-not-found]

from peftbench.config import compose

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in itertools.pairwise("abcdefgh")
)
BITFIT = "_target_: peftbench.methods.bitfit.BitFit\ndefault_lr: 1.0e-3\n"
MINE = ("mine.yaml", "method=mine")  # the file, or the word that it is: lines must name one of them
# What is in the file -> what of it the lines must name.
YAMLS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "anchor loop": ("a: &a [*a]\n", ("'a'",)), "alias bomb": (BOMB, ("aliases",)),
    "3,000 levels": ("[" * 3000 + "]" * 3000, ("levels",)), "tabs": (f"{BITFIT}\tkinds: null\n", ("line 3",)),
    "not UTF-8": (b"\xff\xfe\x00", ("byte 0",)), "NUL": (b"a: \x00\n", ()), "empty": ("", ("_target_",)),
    "list": ("- a\n", ("list",)), "text": ("just words\n", ("just words",)),
    "no target": ("default_lr: 1.0e-3\n", ("_target_",)), "cut": (BITFIT + "kinds: [query", ("line",)),
    "no rate": (BITFIT.partition("default")[0], ("default_lr",)),
    "defaults loop": (f"defaults: [mine]\n{BITFIT}", ("defaults",)),
    "defaults nowhere": (f"defaults: [nope]\n{BITFIT}", ("nope",)),
    "defaults no list": (f"defaults: 3\n{BITFIT}", ("defaults",)),
    "interpolation loop": (f"{BITFIT}kinds: ${{method.kinds}}\n", ("method.kinds",)),
    "interpolation": (f"{BITFIT}kinds: ${{nope.nope}}\n", ("nope.nope",)),
    "resolver": (f"{BITFIT}kinds: ${{eval:1}}\n", ("eval",)),
    "environment": (f"{BITFIT}kinds: ${{oc.env:NOPE_NOPE}}\n", ("NOPE_NOPE",)),
    "no class": ("_target_: no.such.Thing\ndefault_lr: 1\n", ("no.such.Thing",)),
    "function": ("_target_: os.system\ndefault_lr: 1.0e-3\n", ("os.system",)),
    "key": (f"{BITFIT}knids: null\n", ("method.knids",)),
    "python tag": (f"{BITFIT}kinds: !!python/object/apply:os.system [ls]\n", ("os.system",)),
    "date": (f"{BITFIT}kinds: 2020-01-01\n", ("method.kinds=2020-01-01",)),
    "twice": (f"{BITFIT}default_lr: 2.0e-3\n", ("default_lr",)),
    "word": (f"{BITFIT}kinds: [biases]\n", ("biases",)), "rate": (BITFIT.replace("1.0e-3", "x"), ("lr=x",)),
    "negative rate": (BITFIT.replace("1.0e-3", "-3"), ("lr=-3",)),
    "mapping": (f"{BITFIT}kinds: {{a: 1}}\n", ("kinds={",)), "number": (f"{BITFIT}kinds: 77\n", ("kinds=77",)),
    "other group": (f"# @package task\n{BITFIT}", ()),
}  # fmt: skip


def yamls() -> Iterator[Input]:
    """A user's own yaml files, damaged or with what they must not hold."""

    def put(text: str | bytes) -> Prepare:
        def files(folder: Path) -> None:
            (folder / "conf" / "method").mkdir(parents=True)
            content = text if isinstance(text, bytes) else text.encode()
            (folder / "conf" / "method" / "mine.yaml").write_bytes(content)

        return files

    for name, (text, naming) in YAMLS.items():
        for command in (["run"], ["count"], ["plan"], ["run", "-m"]):
            line = [*command, *TINY, "hydra.searchpath=[file://conf]", "method=mine"]
            yield Input(f"yaml: {name}", line, [MINE, *naming], put(text))


def outputs() -> Iterator[Input]:
    """Places that cannot be written: a file, a device, the root of a system's own file systems."""

    def a_file(folder: Path) -> None:
        (folder / "taken").write_text("a file")

    for place in ("taken", "taken/in", "/dev/null", "/dev/null/x", "/proc/x", "/sys/x", "x" * 300, "a/" * 2100):
        yield Input("output", ["run", *TINY, f"outputs={place}"], ["outputs", place[:SHOWN]], a_file)
        yield Input("output", ["run", "-m", *TINY, f"outputs={place}"], [place[:SHOWN]], a_file)
        yield Input("cache", ["run", *TINY, f"cache={place}"], ["cache", place[:SHOWN]], a_file)
    for variable in ("PEFTBENCH_CACHE",):
        for place in ("taken", "/proc/x", "/dev/null/x"):
            yield Input("cache", ["run", *TINY], ["cache"], a_file, {variable: place})


HEADERS = {"rte": ("RTE", "index\tsentence1\tsentence2\tlabel\n", "0\ta\tb\tentailment\n"),
           "sst2": ("SST-2", "sentence\tlabel\n", "fine\t1\n"),
           "stsb": ("STS-B", "index\tgenre\tsentence1\tsentence2\tscore\n", "0\tnews\ta\tb\t3\n")}  # fmt: skip
LABEL = "label or score"  # in the place of the label's column: its name differs from task to task


def _label_of(head: str) -> str:
    return head.strip().rpartition("\t")[2]


def _labelled(row: str, label: str) -> str:
    return row.rpartition("\t")[0] + f"\t{label}\n"


def _twice(head: str, row: str) -> bytes:
    return (f"{head.strip()}\t{_label_of(head)}\n{row.strip()}\t1\n").encode()


# What a file of rows is made of its head and a row -> what of it the line must name.
DAMAGE: dict[str, tuple[Callable[[str, str], bytes], tuple[str, ...]]] = {
    "empty": (lambda head, row: b"", ("no rows",)), "header only": (lambda head, row: head.encode(), ("no rows",)),
    "cut": (lambda head, row: (head + row * 3)[:-6].encode(), ("line 4",)),
    "NUL": (lambda head, row: (head + row).encode() + b"\0\0\t\n", ("line 3",)),
    "commas": (lambda head, row: (head + row).replace("\t", ",").encode(), ("line 1", "comma")),
    "other header": (lambda head, row: (head.upper() + row).encode(), ("line 1", "'sentence")),
    "column twice": (_twice, ("line 1", LABEL)),
    "column more": (lambda head, row: (head.strip() + "\tmore\n" + row).encode(), ("line 2", "fields")),
    "CR only": (lambda head, row: (head + row * 3).replace("\n", "\r").encode(), ("line 1", "CR")),
    "CR within": (lambda head, row: (head + row + row.replace("\t", "\r\t", 1)).encode(), ("line 3", "CR")),
    "binary": (lambda head, row: bytes(range(256)) * 9, ("byte 128",)),
    "latin-1": (lambda head, row: (head + row).encode() + "\u00e4".encode("latin-1"), ("byte",)),
    "UTF-16": (lambda head, row: (head + row).encode("utf-16"), ("byte 0",)),
    "label": (lambda head, row: (head + row + _labelled(row, "77")).encode(), ("line 3", "77")),
    "label not finite": (lambda head, row: (head + row + _labelled(row, "nan")).encode(), ("line 3", "nan")),
    "long label": (lambda head, row: (head + row + _labelled(row, "q" * 9999)).encode(), ("line 3", "qqqqqqqqqqqq")),
    "no label": (lambda head, row: (head + row + _labelled(row, "")).encode(), ("line 3", "''")),
    "fields": (lambda head, row: (head + row + row.strip() + "\tmore\n").encode(), ("line 3", "fields")),
    "empty line": (lambda head, row: (head + row + "\n" + row).encode(), ("line 3", "empty")),
    "codes": (lambda head, row: head.replace(_label_of(head), "\x1b[31m").encode() + row.encode(), ("line 1", LABEL)),
    "megabytes": (lambda head, row: ("x" * 3_000_000 + "\t" + head + row).encode(), ("line 2", "fields")),
}  # fmt: skip


def data() -> Iterator[Input]:
    """Files of rows that are damaged, or others: of train, and of dev beside a good train."""

    def put(name: str, train: bytes, dev: bytes) -> Prepare:
        def files(folder: Path) -> None:
            (folder / "glue" / name).mkdir(parents=True)
            (folder / "glue" / name / "train.tsv").write_bytes(train)
            (folder / "glue" / name / "dev.tsv").write_bytes(dev)

        return files

    for task, (name, head, row) in HEADERS.items():
        line = ["run", *TINY, f"task={task}", "data=folder", "data.path=glue"]
        good = (head + row * 4).encode()
        for damage, (make, naming) in DAMAGE.items():
            content = make(head, row)
            named = [f"'{_label_of(head)}'" if item == LABEL else item for item in naming]
            yield Input(f"data: {damage}", line, ["train.tsv", *named], put(name, content, content))
            yield Input(f"data: {damage}", line, ["dev.tsv", *named], put(name, good, content))


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
        yield Input("weights: nowhere", ["run", *TINY, f"model.weights={place}"], ["model.weights", place[:SHOWN]])


KINDS = (yamls, outputs, data, weights)
