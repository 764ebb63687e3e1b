"""The kinds of malformed commands beside `run`: missing or wrong arguments, switches, folders, studies and files."""

import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from malformed_input import SHOWN, TINY, Input, Prepare  # type: ignore[import-not-found]

STUDY: list[Path] = []  # a folder of studies, of which `pilot` has finished runs; copied for inputs that need it
PILOT, OTHER = "pilot", "other"  # the second study has one run of another task
OUTPUTS = "outputs"
NOT_THERE = ("nope", "../nope", "/nowhere", "x" * 300, "a\nb", "~nobody-here/x")
NO_STUDY = (".", "..", "", "/", "pilot/..", "./pilot")  # folders there are, and no names of studies
NO_FOLDER = ("taken", "taken/in", "/dev/null", "/dev/null/x", "/proc/x", "x" * 300)  # nothing can be written there
NO_COUNT = ("0", "-1", "x", "1.5", "", "nan", "9" * 30, "x" * 3000)
# Command that reads a study -> what else it needs.
OF_A_STUDY: Mapping[str, Sequence[str]] = {
    "status": (), "table": (), "report": (), "sync": (), "work": (), "stop": (), "compare": ("lora", "bitfit"),
    "plot": ("--to", "p"), "submission": ("--method", "m"),
}  # fmt: skip
OF_A_RUN: Mapping[str, Sequence[str]] = {
    "apply": ("--output", "x"), "predict": ("rows.tsv",), "export": ("--to", "x"), "score": ("task=rte",),
    "edit": ("edit.behaviour=predicts:entailment",),
}  # fmt: skip


def words_of_runs() -> list[list[str]]:
    """The sweeps that make the studies, in a folder of their own."""
    same = ["run", "-m", *TINY, "seed=0"]
    return [
        [*same, f"study={PILOT}", "task=rte,sst2", "method=lora,bitfit"],
        [*same, f"study={OTHER}", "task=stsb", "method=lora"],
    ]


def a_study(folder: Path) -> None:
    """Put the studies there, and a file that is none."""
    shutil.copytree(STUDY[0], folder / OUTPUTS)
    _taken(folder)


def run_of(method: str, study: str = PILOT) -> str:
    """The folder of a finished run, where the command is given."""
    found = sorted((STUDY[0] if STUDY else Path()).glob(f"{study}/*-{method}-*/seed0"))
    return f"{OUTPUTS}/{found[0].relative_to(STUDY[0])}" if found else f"{OUTPUTS}/{study}/{method}"


def _taken(folder: Path) -> None:
    (folder / "taken").write_text("a file")
    (folder / "rows.tsv").write_text("sentence1\tsentence2\na\tb\n")


def printed(word: str) -> str:
    """The beginning of a word as a line may hold it."""
    return word.encode("unicode_escape").decode()[:SHOWN]


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
                yield Input("environment", [command, *TINY], [f"{name}={value[:SHOWN]}"], None, {name: value})


def commands() -> Iterator[Input]:
    """Commands without what they need, with too much, with switches and words that are not there."""
    for word in ("runn", "train", "-x", "--versio", "x" * 5000, "\x1b[31m", ""):
        yield Input("command", [word], [f"peftbench {printed(word)}"])
    needs = {"flips": "old", "verify": "what", "collect": "folders", "convert": "source", "backbone": "--to"}
    needs |= dict.fromkeys(OF_A_STUDY, "study") | dict.fromkeys(OF_A_RUN, "run")
    needs |= {"reproduce": "paper", "merge": "merge=", "port": "from", "sequence": "learner="}
    needs |= {"apply": "--output", "export": "--to"}
    for command, need in needs.items():
        rest = [*OF_A_STUDY.get(command, ())] if command != "compare" else []
        yield Input("argument: none", [command, *rest], [need])
        rest += [*OF_A_RUN.get(command, ()), *{"backbone": ["--to", "x"], "flips": ["b"]}.get(command, [])]
        for switch in ("--colour", f"--{'x' * 3000}", "--outputs", "-q"):
            if (command, switch) != ("collect", "--outputs"):
                yield Input("switch", [command, "nope", *rest, switch], [switch[:SHOWN]], _taken)
    for command in ("flips", *OF_A_STUDY):
        rest = ["a", "b", "x=1"] if command in ("flips", "compare") else [*OF_A_STUDY[command], "x=1"]
        yield Input("argument: more", [command, PILOT, *rest], ["x=1"], a_study)
    for words in (["reproduce", "nope"], ["count", "--paper", "nope"], ["list", "modls"], ["list", "model", "nope"],
                  ["submission", "--check", "nope.zip"], ["count", "--jsn"], ["table", "nope", "--paper", "nope"],
                  ["reproduce", "lora_roberta_base", "--as", "nope"], ["plan", "--sav"], ["count", "--paper", ""],
                  ["reproduce", "lora_roberta_base", "--only", "nope"], ["reproduce", "bitfit", "sed", "--dry-run"],
                  ["reproduce", "bitfit", "data=nope", "--dry-run"]):  # fmt: skip
        yield Input("argument", words, [printed(words[-1] if words[-1] != "--dry-run" else words[-2]) or "paper"])
    yield Input("argument", ["status", PILOT, "--watch", "--json"], ["--json", "--watch"], a_study)


def studies() -> Iterator[Input]:
    """Studies that are not there, or are none, for every command that reads one."""
    for command, rest in OF_A_STUDY.items():
        for study in (*NOT_THERE, *NO_STUDY, "taken"):
            for files in (None, a_study):
                yield Input("study", [command, study, *rest], ["study " + (printed(study) or "''")], files)
        for place in ("nowhere", "taken", "/dev/null", "~nobody-here/x"):
            yield Input("outputs", [command, PILOT, "--outputs", place, *rest], [place], a_study)
    for command, word in {"verify": "nope", "flips": "nope", "collect": "nope"}.items():
        for study in (*NOT_THERE, "taken", "", "/"):
            line = [command, study, *([PILOT] if command == "flips" else [])]
            yield Input(f"study: {word}", line, [printed(study) or ("''", ".: ")], a_study)


def views() -> Iterator[Input]:
    """Rows, plans, formats, ports and files that the views of a study cannot have."""
    lines: list[tuple[list[str], str]] = [
        (["compare", PILOT], "ONE"), (["compare", PILOT, "lora"], "ONE"), (["compare", PILOT, "lora", "nope"], "nope"),
        (["compare", PILOT, "nope", "lora"], "nope"), (["compare", PILOT, "", "lora"], f"study {PILOT}"),
        (["compare", PILOT, "lora", "bitfit", "--plan", "taken"], "--plan"),
        (["table", PILOT, "--format", "docx"], "docx"), (["table", PILOT, "--format", ""], "--format"),
        (["table", PILOT, "--show", "nope"], "--show nope"), (["table", PILOT, "--show", ""], "--show"),
        (["table", PILOT, "--model", "nope"], "--model nope"), (["table", PILOT, "--paper", "nope"], "nope"),
        (["table", PILOT, "--data", "taken"], "--data"), (["table", PILOT, "--constants", "c_p=1"], "--constants"),
        (["table", PILOT, "--show", "cost", "--paper", "spafit"], "--paper"),
        (["report", PILOT, "--paper", "nope"], "nope"), (["report", PILOT, "--old", "nope"], "nope"),
        (["report", PILOT, "--serve", "8765", "--to", "x.html"], "x.html"),
        (["submission", PILOT, "--method", "nope"], "nope"), (["submission", PILOT], "--method"),
        (["submission", PILOT, "--method", "lora"], "--fill-majority"),
        (["flips", PILOT], "new"), (["flips", PILOT, PILOT], PILOT), (["flips", PILOT, "nope"], "nope"),
        (["flips", PILOT, OTHER], PILOT), (["flips", PILOT, PILOT, "--old-row", "nope"], "nope"),
        (["flips", PILOT, PILOT, "--old-row", "lora", "--new-row", "nope"], "nope"),
        (["flips", run_of("lora"), PILOT], PILOT), (["flips", PILOT, run_of("lora")], PILOT),
        (["flips", run_of("lora"), run_of("lora", OTHER)], "stsb"), (["flips", run_of("lora"), "taken"], "taken"),
        (["flips", run_of("lora"), run_of("bitfit"), "--old-row", "lora"], "--old-row"),
    ]  # fmt: skip
    lines += [(["table", PILOT, "--show", "pscp", "--constants", word], word) for word in
              ("c_q=1", "c_p", "c_p=x", "c_p=-1", "c_p=nan", "beta_p=1e99")]  # fmt: skip
    for number in ("x", "nan", "-1", "0", "500", "", "x" * 3000):
        lines.append((["compare", PILOT, "lora", "bitfit", f"--margin={number}"], "--margin"))
    for number in ("x", "-1", "99999", "0.5", "", "x" * 3000):
        lines.append((["report", PILOT, f"--serve={number}"], "--serve"))
    for words, naming in lines:
        value = words[-1].partition("=")[2] if words[-1].startswith("--") else ""
        yield Input(f"view: {words[0]}", words, [naming, value[:SHOWN]], a_study)
    for place in NO_FOLDER:
        to = [printed(place)]
        yield Input("view: to", ["plot", PILOT, "--to", place], to, a_study)
        yield Input("view: to", ["report", PILOT, "--to", f"{place}/page.html"], to, a_study)
    for place in (".", OUTPUTS, "/dev/null", "/"):
        for line in (["report", PILOT], ["submission", PILOT, "--method", "lora", "--fill-majority"]):
            yield Input("view: to", [*line, "--to", place], [f"--to {place}"], a_study)
    for name, content in {
        "text": b"no zip",
        "empty": b"",
        "cut": b"PK\x03\x04",
        "zip": b"PK\x05\x06" + b"\0" * 18,
    }.items():
        files = _file("my.zip", content)
        yield Input(f"view: zip {name}", ["submission", "--check", "my.zip"], ["my.zip"], files)
    for place in (".", "/dev/null", "/proc", "x" * 300):
        yield Input("view: zip", ["submission", "--check", place], [printed(place)])


def runs() -> Iterator[Input]:
    """What is asked of finished runs that are none, or are asked for what they cannot do."""
    for command, rest in OF_A_RUN.items():
        for run in ("nope", "/dev/null", "x" * 300, ".", "taken", "", OUTPUTS, f"{OUTPUTS}/{PILOT}"):
            yield Input("run folder", [command, run, *rest], [printed(run) or ("''", "result.json")], a_study)
        for damage in ("cut", "gone", "list", "record gone", "record cut"):
            yield Input(f"run: {damage}", [command, run_of("lora"), *rest], [run_of("lora")[:SHOWN]], _damaged(damage))
        yield Input(
            "run: searchpath", [command, run_of("lora"), *rest, "--searchpath", "no/where"], ["no/where"], a_study
        )
    lora, bitfit = run_of("lora"), run_of("bitfit")
    for place in NO_FOLDER:
        yield Input("run: to", ["apply", lora, "--output", place], [printed(place)], a_study)
        yield Input("run: to", ["export", lora, "--to", place], [printed(place)], a_study)
    lines: list[tuple[list[str], Sequence[str]]] = [
        (["apply", lora], ["--output"]), (["export", lora], ["--to"]), (["predict", lora], ["file"]),
        (["export", bitfit, "--to", "x"], ["bitfit"]), (["apply", lora, "task=nope", "--output", "x"], ["task=nope"]),
        (["apply", lora, "seed=1", "--output", "x"], ["seed=1"]),
        (["apply", lora, "x", "y", "--output", "x"], ["x: not a word"]),
        (["predict", lora, "rows.tsv", "task=mrpc"], ["task=mrpc"]), (["predict", lora, "nope.tsv"], ["nope.tsv"]),
        (["predict", lora, "taken"], ["taken", "line 1", "sentence1"]), (["predict", lora, "/dev/null"], ["/dev/null"]),
        (["predict", lora, "."], ["."]), (["predict", lora, "x" * 300], ["x" * SHOWN]),
    ]  # fmt: skip
    for words, naming in lines:
        yield Input(f"run: {words[0]}", words, naming, a_study)


def trust() -> Iterator[Input]:
    """`verify`, `collect`, `work`: numbers, folders and records that they cannot take."""
    for number in NO_COUNT:
        for command, switch in (("verify", "--sample"), ("work", "--cells"), ("work", "--workers")):
            yield Input("switch: number", [command, PILOT, f"{switch}={number}"], [switch, number[:SHOWN]], a_study)
    for time in ("x", "-3h", "5y", "", "3", "h", "1h2", "9" * 30 + "d", "3h " + "x" * 3000):
        yield Input("switch: number", ["work", PILOT, f"--until={time}"], ["--until", time[:SHOWN]], a_study)
    for words, naming in (
        (["verify", PILOT, "--searchpath", "no/where"], ["no/where"]), (["verify", "."], ["."]),
        (["verify", "taken"], ["taken"]), (["verify", "/dev/null"], ["/dev/null"]),
        (["verify", "rows.tsv"], ["rows.tsv"]),
        (["work", PILOT, "--searchpath", "no/where"], ["no/where"]), (["collect", "."], ["."]),
        (["collect", OUTPUTS], [OUTPUTS]), (["collect", "taken"], ["taken"]), (["collect", "/dev/null"], ["/dev/null"]),
        (["collect", f"{OUTPUTS}/{PILOT}", f"{OUTPUTS}/{OTHER}"], [PILOT, OTHER]), (["collect", "/"], ["/"]),
        (["collect", f"{OUTPUTS}/{PILOT}", "nope"], ["nope"]),
    ):  # fmt: skip
        yield Input(f"trust: {words[0]}", words, naming, a_study)
    for place in NO_FOLDER:
        yield Input("trust: outputs", ["collect", f"{OUTPUTS}/{PILOT}", "--outputs", place], [printed(place)], a_study)
    for damage in ("record cut", "record list"):
        for line in (["verify", run_of("lora")], ["collect", f"{OUTPUTS}/{PILOT}", "--outputs", "new"]):
            yield Input(f"trust: {damage}", line, [run_of("lora")[:SHOWN]], _damaged(damage))


def pickles() -> Iterator[Input]:
    """`convert` of folders that hold no pickle of tensors, and of names that the Hub cannot have."""
    contents = {
        "text": b"no pickle", "empty": b"", "code": pickle.dumps(print), "list": pickle.dumps([1]),
        "cut": b"PK\x03\x04",
    }  # fmt: skip
    for name, content in contents.items():
        for file in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
            yield Input(f"pickle: {name}", ["convert", "place"], [file], _file(f"place/{file}", content))
    shards = {"none": b"{}", "elsewhere": b'{"weight_map": {"a": "../x.bin"}}', "map": b'{"weight_map": [1]}'}
    for name, content in shards.items():
        files = _file("place/pytorch_model.bin.index.json", content)
        yield Input(f"pickle: {name}", ["convert", "place"], ["pytorch_model.bin.index.json"], files)
    there = _file("place/model.safetensors", b"x")
    yield Input("pickle: there", ["convert", "place"], ["place/model.safetensors"], there)
    for name in ("nope", "nope/nope", "../x/y", "a/b/c", "/dev/null", ".", "", "x" * 300, "taken", "a b/c", "-", "é/é"):
        yield Input("pickle: nowhere", ["convert", name], [name[:SHOWN] or ".: no"], _taken)
    yield Input("pickle: two", ["convert", "a/b", "c/d"], ["c/d"])


def _file(name: str, content: bytes) -> Prepare:
    def files(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return files


def _damaged(how: str) -> Prepare:
    """The studies, with a run of LoRA that is damaged."""

    def files(folder: Path) -> None:
        a_study(folder)
        run = folder / run_of("lora")
        path = run / ("result.json" if how.startswith("record") else "delta.safetensors")
        if how.endswith("gone"):
            path.unlink()
        elif how.endswith("cut"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.write_bytes(b"[1]")

    return files


KINDS = (environments, commands, studies, views, runs, trust, pickles)
