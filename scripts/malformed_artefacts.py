"""The kinds of malformed words of `score`, `merge`, `port`, `edit`, `sequence`, `backbone` and of registered plans."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from malformed_commands import NO_FOLDER, OTHER, OUTPUTS, PILOT, a_study, printed, run_of  # type: ignore[import-not-found]
from malformed_input import SHOWN, TINY, Input, Naming, beside  # type: ignore[import-not-found]

from peftbench.config import compose

NUMBERS = ("-7", "nan", "inf", "x", "[3,x]", "{a: 1}", "true", "''", "99999999999999999999999999")
SOURCE = ["model=bert_tiny", "task=rte", "model.weights=random"]
IN_SAMPLE = [*SOURCE[::2], "sequence.tasks=[rte,sst2]"]


def keys_of(group: str, word: str) -> dict[str, Any]:
    """The keys of a word of a group that no cell is made of, with their values."""
    raw: dict[str, Any] = yaml.safe_load((compose.conf_dir() / group / f"{word}.yaml").read_text())
    below: dict[str, Any] = {}
    for base in raw.pop("defaults", []):
        below |= keys_of(group, base) if base != "_self_" else {}
    return below | raw


def wrong_values(group: str, word: str) -> Iterator[tuple[str, str]]:
    """Keys of such a word, each with values that it cannot have."""
    for key, value in keys_of(group, word).items():
        if isinstance(value, bool):
            wrong: Sequence[str] = ("3", "perhaps", "[]")
        elif isinstance(value, int | float) or key == "scale":
            wrong = NUMBERS[key == "strength" :]  # which may be negative
        elif isinstance(value, list):
            wrong = ("word", "{a: 1}", "[[]]", "[]", "[x]")
        else:
            wrong = ("[a]", "{a: 1}", "7")
        yield from ((f"{group}.{key}", text) for text in wrong)


def keys() -> Iterator[Input]:
    """Wrong values of every key of every way to merge, port, edit, learn and make a backbone; keys and words there are
    not."""
    asked = {"merge": ["merge", f"from={PILOT}", "method=lora"], "port": ["port", f"from={PILOT}", *SOURCE[::2]],
             "make": ["backbone", *SOURCE, "--to", "x"], "learner": ["sequence", *IN_SAMPLE],
             "sequence": ["sequence", "learner=simplecil", *SOURCE[::2]],
             "edit": ["edit", run_of("lora"), "edit.behaviour=predicts:entailment"]}  # fmt: skip
    for group, line in asked.items():
        for word in compose.words(group):
            own = [] if group == "port" else [f"{group}={word}"]
            for key, text in wrong_values(group, word):
                yield Input(f"{group} key", [*line, *own, f"{key}={text}"], [beside(key, text)], a_study)
            for key in (f"{group}.nope", f"{group}.scal", f"{group}."):
                yield Input(f"{group} key", [*line, *own, f"{key}=1"], [key], a_study)
        for word in ("nope", "", "../x", "average,nope", "x" * 3000):
            if group != "merge" and "," in word:
                continue
            yield Input(f"{group} word", [*line, f"{group}={word}"], [f"{group}={word[:0]}", word[-4:]], a_study)


def artefacts() -> Iterator[Input]:
    """Runs, studies, tasks, seeds, sweeps and places that an artefact cannot have; kept for workers or made at once."""
    run, of_stsb = run_of("lora"), run_of("lora", OTHER)
    merge, port = (
        ["merge", f"from={PILOT}", "method=lora", "merge=average"],
        ["port", f"from={PILOT}", "model=bert_tiny"],
    )
    score, edit = ["score", run], ["edit", run, "edit.behaviour=predicts:entailment"]
    lines: list[tuple[list[str], Sequence[Naming]]] = [
        (["merge"], ["merge="]), (["merge", "merge=average"], ["from"]),
        (["merge", f"from={PILOT}", "merge=average"], ["method"]),
        (["port"], ["from"]), (["port", f"from={PILOT}"], ["model"]), (["port", "model=bert_tiny"], ["from"]),
        ([*merge, "task=rte"], ["task"]), ([*merge, "protocol.lr=1"], ["protocol.lr"]), ([*merge, "word"], ["word"]),
        ([*port, "tasks=[rte]"], ["tasks"]), ([*port, "protocol.lr=1"], ["protocol.lr"]), ([*port, "word"], ["word"]),
        ([*score, "method=lora"], ["method"]), ([*score, "protocol.lr=1"], ["protocol.lr"]),
        ([*score, "word"], ["word"]),
        ([*score, "task=nope"], ["task=nope"]), ([*score, "task=stsb"], ["task=stsb"]),
        ([*score, "task=rte,nope"], ["nope"]),
        ([*score, "task="], ["task="]), ([*score, "task=joint"], ["task"]),
        (["score", of_stsb, "task=rte"], ["task=rte"]),
        ([*score, "task=mrpc"], ["mrpc"]), ([*score, "data=nope"], ["data=nope"]), ([*score, "data=folder"], ["data"]),
        ([*score, "task=rte", "data=folder", "data.path=/nowhere"], ["/nowhere"]),
        (edit[:2], ["edit.behaviour"]), ([*edit[:2], "edit.behaviour=predicts:x"], ["behaviour=predicts:x"]),
        ([*edit[:2], "edit.behaviour=nope"], ["behaviour=nope"]), ([*edit, "task=rte"], ["task"]),
        ([*edit, "protocol.lr=1"], ["protocol.lr"]), ([*edit, "word"], ["word"]), ([*edit, "edit=nope"], ["edit=nope"]),
        ([*edit, "collateral=[nope]"], ["nope"]), ([*edit, "collateral=sst2"], ["collateral=sst2"]),
        ([*edit, "data=nope"], ["data=nope"]), ([*edit, "data=folder", "data.path=/nowhere"], ["/nowhere"]),
        (["edit", of_stsb, *edit[2:]], ["stsb"]),
        ([*port, "model=nope"], ["model=nope"]),
        ([*port[:2], "model=bert_mini", "model.weights=random"], ["bert_mini"]),
        ([*port, "model.weights=no/where"], ["no/where"]), ([*port, "model.weights=taken"], ["taken"]),
        ([*port, "port.steps=5", "port.scale=0.5"], ["scale=0.5"]), ([*port, "port=nope"], ["port=nope"]),
        ([*merge[:3], "merge=average,nope"], ["nope"]), ([*merge[:3], "merge=ties,"], ["merge=ties,"]),
        ([*merge, "tasks=[rte]"], ["rte"]), ([*merge, "tasks=[rte,rte]"], ["tasks=[rte,rte]"]),
        ([*merge, "tasks=[rte,nope]"], ["nope"]), ([*merge, "tasks=rte"], ["tasks=rte"]),
        ([*merge, "tasks={a: 1}"], ["tasks={a"]),
        ([*merge, "tasks=[rte"], ["tasks=[rte"]),
        (["merge", f"from={OTHER}", *merge[2:]], ["stsb"]), ([*merge, "seed=0,x"], ["seed=x"]),
    ]  # fmt: skip
    learn = ["sequence", "learner=simplecil", *IN_SAMPLE]
    lines += [
        (["sequence"], ["learner="]), (learn[:1] + IN_SAMPLE, ["learner="]), ([*learn, "word"], ["word"]),
        ([*learn, "method=lora"], ["method"]), ([*learn, "task=rte"], ["task"]), ([*learn, "from=s"], ["from"]),
        ([*learn, "protocol.lr=1"], ["protocol.lr"]), ([*learn, "protocol.nope=1"], ["protocol.nope"]),
        ([*learn, "order=x"], ["order=x"]), ([*learn, "order=-1"], ["order=-1"]), ([*learn, "order="], ["order="]),
        ([*learn, "seed=x"], ["seed=x"]), ([*learn, "study=a/b"], ["study=a/b"]),
        ([*learn[:-1], "sequence.tasks=[rte,nope]"], ["nope"]), ([*learn[:-1], "sequence.tasks=[rte,stsb]"], ["stsb"]),
        ([*learn[:-1], "sequence.tasks=[rte,rte]"], ["sequence.tasks"]),
        ([*learn[:-1], "sequence.tasks=[rte,ax]"], ["ax"]), ([*learn[:-1], "sequence.tasks=[rte,cola]"], ["cola"]),
        ([*learn[:-1], "sequence.tasks=rte"], ["sequence.tasks=rte"]),
    ]  # fmt: skip
    for line in (merge, port):
        chosen = [word for word in line if not word.startswith("method=")]
        lines += [
            ([*chosen, "method=nope"], ["method=nope"]), ([*chosen, "method="], ["method="]),
            ([*line, "budget=nope"], ["budget=nope"]), ([*line, "seed=9"], ["seed", "9"]),
            ([*line, "seed=x"], ["seed=x"]), ([*line, "seed=-1"], ["seed=-1"]),
            ([*line, "seed=range(3"], ["seed=range(3"]), ([*line, f"seed={'9' * 40}"], ["seed=99999"]),
            ([*line, "outputs=nowhere"], ["nowhere"]), ([*line, "outputs=taken"], ["taken"]),
            ([*line, "study=a/b"], ["study=a/b"]), ([*line, "cache=[a]"], [beside("cache", "[a]")]),
        ]  # fmt: skip
        for study in ("nope", "../nope", "/nowhere", "x" * 300, ".", "..", "", "taken", "[a]", "a b"):
            words = [word for word in line if not word.startswith("from=")]
            named = [(f"from={printed(study)}", f"from={study}".replace(" ", "\\ "))]  # as Hydra writes a word again
            lines.append(([*words, f"from={study}"], named))
            if study not in ("nope", "taken"):  # runs of which an artefact is kept may be still to come
                lines.append(([*words, f"from={study}", "--save"], named))
    for line in (merge, port, learn, [*score, "task=rte"], edit):
        yield Input(f"{line[0]}: save", [*line, "--save", "--searchpath", "conf"], ["--s"], a_study)
        yield Input(f"{line[0]}: save", [*line, "--save", "outputs=taken"], ["taken"], a_study)
        yield Input(f"{line[0]}: searchpath", [*line, "--searchpath", "no/where"], ["no/where"], a_study)
        yield Input(f"{line[0]}: save", [*line, "--save", "study=a/b"], ["study=a/b"], a_study)
        yield Input(f"{line[0]}: save", [*line, "--save", "sed=1"], ["sed"], a_study)
    for words, naming in lines:
        yield Input(f"{words[0]}: words", words, naming, a_study)


def backbones() -> Iterator[Input]:
    """What no backbone can be made of, and where none can be written."""
    made = {"lowrank": ["make=lowrank", "make.variant=svd"], "mlm": ["make=mlm"]}
    for place in (*NO_FOLDER, ".", OUTPUTS, "/"):
        for word, own in made.items():
            line = ["backbone", *own, "model=bert_tiny", f"model.weights={WEIGHTS}", "task=rte", "--to", place]
            yield Input(f"backbone {word}: to", line, [printed(place)], _with_weights)
        yield Input("backbone merged: to", ["backbone", "make=merged", f"make.run={run_of('lora')}", "--to", place],
                    [(printed(place), "random")], a_study)  # fmt: skip
    to = ["--to", "x"]
    for word, own in made.items():
        line = ["backbone", *own, "task=rte", *to]
        for words, naming in (
            (["model=nope"], "model=nope"), (["model=bert_tiny", "model.weights=random"], "model.weights=random"),
            (["model=bert_tiny", "model.weights=no/where"], "no/where"),
            (["model=bert_large_cased"], "bert_large_cased"),
            (["model=bert_tiny", "sed=1"], "sed"), (["model=bert_tiny", "seed=0,1"], "seed=0,1"), (["word"], "word"),
            (["model=bert_tiny", "protocol.batch_size=0"], "batch_size=0"), (["model=bert_tiny", own[0]], own[0][:4]),
            (["model=bert_tiny", f"model.weights={WEIGHTS}", "make.text=no/where"], "no/where"),
            (["model=bert_tiny", f"model.weights={WEIGHTS}", "make.text=/dev/null"], "/dev/null"),
            (["model=bert_tiny", f"model.weights={WEIGHTS}", "make.text=one_row"], "one_row"),
            (["model=bert_tiny", f"model.weights={WEIGHTS}", "make.text=binary"], "binary"),
            (["model=bert_tiny", f"model.weights={WEIGHTS}", "make.text=."], "make.text=."),
            (["model=bert_tiny", f"model.weights={WEIGHTS}", "task=cola"], "cola"),
        ):  # fmt: skip
            distilled = [item for item in line if item != "make.variant=svd"]  # which needs no text
            yield Input(f"backbone {word}", [*distilled, *words], [naming], _with_weights)
    yield Input("backbone lowrank", ["backbone", *made["lowrank"], "model=bert_tiny", f"model.weights={WEIGHTS}",
                                     "make.ratio=1e-9", *to], ["ratio=1e-09"], _with_weights)  # fmt: skip
    for words, naming in (
        ([], "make.run"), (["make.run=nope"], "nope"), (["make.run=taken"], "taken"), (["make.run=null"], "make.run"),
        ([f"make.run={run_of('lora')}"], "make.run="), (["make.run=nope", "seed=1"], "seed=1"),
        ([f"make.run={OUTPUTS}"], OUTPUTS), (["make.run=nope", "--searchpath", "no/where"], "no/where"),
    ):  # fmt: skip
        yield Input("backbone merged", ["backbone", "make=merged", *words, *to], [naming], a_study)
    for words in (["make=nope"], ["make="], ["model=bert_tiny"], ["make=lowrank", "make=mlm"], ["make=lowrank,mlm"]):
        yield Input("backbone", ["backbone", *words, *to], ["make="])


WEIGHTS = "weights"
COPY: list[Callable[[Path], object]] = []  # puts a whole folder of weights there


def _with_weights(folder: Path) -> None:
    a_study(folder)
    COPY[0](folder)
    (folder / "one_row").write_text("a single row\n")
    (folder / "binary").write_bytes(b"\xff\xfe\x00")


def plans() -> Iterator[Input]:
    """Claims, margins and files of plans, and lists of a study, that cannot be: nothing is kept of them."""
    cells = ["plan", *TINY, "study=new", "method=lora,bitfit", "task=rte", "seed=range(20)"]
    claim, register = ["--claim", "lora > bitfit"], ["--register", "plan.yaml"]
    for save in ([], ["--save"]):
        line = [*cells, *save]
        yield Input("plan: claims", [*line, *register], ["--claim"])
        yield Input("plan: claims", [*line, *claim], ["--claim", "lora > bitf"])
        yield Input("plan: claims", [*line, "--margin", "3"], ["--margin 3"])
        for text in ("x", "a >", "> b", "a > b > c", "", ">", "a < b", "a" * 3000):
            naming = ["--claim", text[:SHOWN]]
            yield Input("plan: claims", [*line, *register, "--claim", text], naming)
        for number in ("nan", "-1", "0", "1e9", "x", "", "x" * 3000):
            margin = [*line, *register, *claim, f"--margin={number}"]
            yield Input(
                "plan: margin", margin, ["--margin", f"{float(number):g}" if number == "1e9" else number[:SHOWN]]
            )
        for place in (*NO_FOLDER, ".", OUTPUTS, "/"):
            to = [*line, *claim, "--register", place]
            yield Input("plan: file", to, [f"--register {printed(place)}"], a_study)
        for place in ("taken", "/dev/null/x", "/proc/x"):
            yield Input(
                "plan: outputs", [*line, f"outputs={place}", *(["--save"] if not save else [])], [place], a_study
            )
        yield Input("plan: words", [*line, *register, *claim, "sed=1"], ["sed"])
        yield Input("plan: words", [*line, *register, *claim, "protocol.lr=nan"], ["lr=nan"])
        yield Input("plan: words", [*line, *register, *claim, "--nope"], ["--nope"])
        yield Input("plan: words", ["plan", *TINY, "study=a/b", *save, *register, *claim], ["study=a/b"])
        late = ["plan", *TINY, f"study={PILOT}", "task=rte", "method=lora", "seed=0", *save, *register, *claim]
        yield Input("plan: late", late, ["--register plan.yaml", PILOT], a_study)
    plan = "study: pilot\nregistered: x\nversion: 1\nmargin: 1.0\ncells: []\nclaims: [a > b]\nsha256: 0\n"
    for name, text in {
        "text": "no plan", "list": "[1]", "empty": "", "cut": "study: [", "keys": "study: pilot\nnope: 1\n",
        "edited": plan, "margin": plan.replace("1.0", "-1"), "codes": "a: \x01\n", "deep": "[" * 3000,
    }.items():  # fmt: skip
        yield Input(f"plan: {name}", ["compare", PILOT, "--plan", "my.yaml"], ["my.yaml"], _with_plan(text))
    for place in ("nope.yaml", ".", "/dev/null", "x" * 300, "~nobody-here/x"):
        yield Input("plan: nowhere", ["compare", PILOT, "--plan", place], [printed(place)], a_study)


def _with_plan(text: str) -> Callable[[Path], object]:
    def files(folder: Path) -> None:
        a_study(folder)
        (folder / "my.yaml").write_text(text)

    return files


KINDS = (keys, artefacts, backbones, plans)
