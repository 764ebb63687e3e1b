"""Over two hundred malformed command lines, yaml files and data files: a line that names it, nothing written."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import TINY

from peftbench.cli import main
from peftbench.config import compose

WRONG: dict[str, tuple[str, ...]] = {  # per protocol key, values that it cannot have
    "lr": ("fast", "0", "-1", "nan", "inf", "null", "[1]", "true", "'1e-3'"),
    "head_lr": ("fast", "0", "-1", "nan", "inf", "[1]", "true"),
    "epochs": ("0", "-1", "1.5", "many", "null", "[]"),
    "max_steps": ("0", "-3", "2.5", "all", "{}"),
    "batch_size": ("0", "-1", "3.3", "null", "big"),
    "accumulation": ("0", "-1", "33", "x"),
    "schedule": ("liner", "null", "3", "[linear]"),
    "warmup": ("1", "-0.1", "2", "ten", "null"),
    "weight_decay": ("-1", "inf", "nan", "x", "null"),
    "betas": ("0.9", "[0.9]", "[1,2]", "[0.9,0.9,0.9]", "null"),
    "eps": ("0", "-1", "small"),
    "clip": ("0", "-1", "inf", "x"),
    "max_length": ("7", "513", "0", "-1", "long", "null"),
    "bucketing": ("maybe", "2", "null", "[]"),
    "precision": ("fp16", "bf17", "null", "16"),
    "evaluate_every": ("0", "-1", "epochs", "null", "1.5"),
    "patience": ("0", "-1", "x", "0.5"),
    "selection": ("best", "dev", "null", "1"),
    "held_out": ("0", "1", "-0.5", "x", "null"),
    "eval_batch_size": ("0", "-1", "x", "null"),
}
LINES: list[tuple[list[str], str]] = [
    (["protocol.lr=nan"], "protocol.lr=nan: "),
    (["protocol.lr=inf"], "protocol.lr=inf: "),
    (["protocol.lr="], "protocol.lr='': "),
    (["protocol.lr={a: 1}"], 'protocol.lr={"a": 1}: '),
    (["study="], "study='': "),
    (["protocol.lr=${nope}"], "protocol.lr=${nope}: "),
    (["model.layout.depth=nope"], "model.layout.depth=nope: "),
    ([*TINY, "model.config.hidden_act=7"], "model.config.hidden_act=7: no bert can be made of it"),
    (["method=boft", "method.config.boft_block_size=nan"], "boft_block_size=nan: "),
    (["task=joint", "task.tasks=[rte,rte]", "seed=-1"], 'task.tasks=["rte", "rte"]: '),
    (["budget.entries=5", "budget.fraction=0.1"], "budget.entries=5 and budget.fraction=0.1"),
    (["select.factors=[1]", "select.trials=2"], "factors=[1.0] and trials=2"),
    *(([f"protocol.{key}={value}"], f"protocol.{key}") for key, values in WRONG.items() for value in values),
    *(([f"{group}=nope"], f"{group}=nope") for group in ("model", "task", "data", "method", "scope", "budget")),
    *(([f"{group}=nope"], f"{group}=nope") for group in ("protocol", "select", "tracker", "experiment")),
    *(([f"{group}=null"], group) for group in ("model", "task", "data", "method", "scope", "protocol", "tracker")),
    *(([f"{word}=1"], word) for word in ("sed", "learning_rate", "protocol.lrr", "method.rnak", "a.b.c", "tracker.x")),
    *(([f"+{word}=1"], word) for word in ("sed", "protocol.lrr", "tracker.x", "scope.x", "model.x", "task.x")),
    *(([word], word) for word in ("lora", "=", "=lora", "method", "protocol.lr", "-x", "--lr", "1")),
    *(([f"seed={value}"], "seed") for value in ("-1", "x", "1.5", "null", "[1]", "true", "1e3")),
    *(([f"study={value}"], "study") for value in ("a/b", "..", "'a b'", "null", "''", "[a]")),
    *(([f"rerun={value}"], "rerun") for value in ("some", "null", "1")),
    *(([f"cells_per_gpu={value}"], "cells_per_gpu") for value in ("0", "-1", "x", "1.5")),
    *(([f"checkpoint_every={value}"], "checkpoint_every") for value in ("-1", "often", "inf", "[]")),
    *(([f"progress={value}"], "progress") for value in ("3", "perhaps", "null")),
    *(([f"outputs={value}"], "outputs") for value in ("3", "null", "[a]")),
    *(([f"init_from={value}"], "init_from") for value in ("/nowhere", "3", "[a]")),
    *(([f"budget={value}"], "budget") for value in ("0", "-5", "lots", "1.5", "320kk")),
    *(([f"budget.fraction={value}"], "budget.fraction") for value in ("0", "-1", "1.5", "x")),
    *(([f"budget.entries={value}"], "budget.entries") for value in ("0", "-1", "x", "2.5")),
    *(([f"budget.like={value}"], "budget.like") for value in ("nope", "bitfitt", "id3")),
    (["method=id3", "budget=99999999999"], "budget"),
    (["method=id3"], "budget"),
    (["method=full", "budget=1000"], "budget"),
    (["method=lora", "budget=3"], "budget"),
    (["budget.entries=5", "budget.fraction=0.1"], "budget"),
    *(([f"scope.layers={value}"], "scope.layers") for value in ("4-9", "-1", "x", "[]", "5-2", "[0,99]", "1.5")),
    *(([f"scope.kinds={value}"], "scope.kinds") for value in ("[bias]", "query", "[1]", "{}")),
    *(([f"method.rank={value}"], "method.rank") for value in ("0", "-1", "x", "1.5", "null")),
    *(([f"method.dropout={value}"], "method.dropout") for value in ("1", "-0.1", "x")),
    *(([f"method.kinds={value}"], "method.kinds") for value in ("[valu]", "3", "query")),
    *((["method=adalora", f"method.rank={value}"], "method.rank") for value in ("0", "-1", "1.5", "null")),
    *((["method=adalora", f"method.initial={value}"], "method.initial") for value in ("-1", "1.0", "x", "null")),
    *((["method=adalora", f"method.{key}=0"], f"method.{key}") for key in ("every", "beta1", "beta2", "target_rank")),
    (["method=adalora", "method.orthogonality=-1"], "method.orthogonality"),
    (["method=adalora", "method.target_rank=13"], "method.target_rank=13: above the initial rank, which is 12"),
    (["method=adalora", "method.initial=0.6"], "method.initial=0.6, method.final=0.45: no step is left between them"),
    (
        [*TINY, "method=adalora", "method.initial=3", "method.final=3"],
        "method.initial=3, method.final=3: 3 + 3 steps; the run has 6, one must lie between",
    ),
    (
        ["method=light_peft", "method.prune_heads=0.99"],
        "method.prune_heads=0.99: of 12 heads of a layer 0 would be",
    ),
    (["method=light_peft", "method.prune_neurons=0.9999"], "method.prune_neurons=0.9999: of 9,216 neurons 1 would be"),
    (["method=light_peft", "method.prune_modules=0.99"], "method.prune_modules=0.99: of 36 linear maps"),
    (["method=light_peft", "method.prune_ranks=1"], "method.prune_ranks"),
    (["method=light_peft", "method.rank=0"], "method.rank"),
    (["method=light_peft", "model=modernbert_base"], "modernbert_base has layout.prunes_heads=false"),
    (
        [*TINY, "method=light_peft", "method.estimation=6"],
        "method.estimation=6: 6 steps; the run has 6, one must be left",
    ),
    *(([f"method={word}", "method.width=0"], "method.width=0") for word in ("houlsby", "pfeiffer")),
    (["method=loha", "method.config.r=0"], "method.config.r=0: must be at least 1"),
    (["method=peft", "method.type=verra"], "method.type=verra"),
    (["method=vera", "method.config.rr=1"], "method.config.rr: peft's vera has no such key; did you mean r"),
    ([*TINY, "method=prefix_tuning", "model=distilbert"], "a distilbert takes no keys and values from outside"),
    *((["method=linear_adapter", f"method.width={value}"], "method.width") for value in ("0", "-1", "1.5", "null")),
    *((["method=linear_adapter", f"method.std={value}"], "method.std") for value in ("0", "-1", "inf", "x")),
    *((["method=hut", f"method.rank={value}"], "method.rank") for value in ("0", "-1", "1.5", "null", "385")),
    (["method=hut", "method.reading=block"], "method.reading=block: did you mean blocks"),
    *((["method=lst", f"method.{key}"], f"method.{key}: ") for key in ("reduction=0", "every=0", "temperature=0")),
    (["method=lst", "method.init=fishy"], "method.init=fishy: did you mean fisher"),
    (["method=lst", "scope.kinds=[query]"], "scope.kinds=["),
    (["method=lst", "method.reduction=385"], "method.reduction=385: above the hidden size here, which is 384"),
    *(([f"method._target_={value}"], "method._target_") for value in ("os.system", "no.such", "x", "null", "3")),
    *(([f"data.limit={value}"], "data.limit") for value in ("0", "-1", "x", "1.5")),
    *(([f"model.weights={value}"], "weights") for value in ("/nowhere", "radnom")),
    *(([f"model.config.hidden_size={value}"], "hidden_size") for value in ("-1", "x", "0", "null", "7")),
    *(([f"model.config.num_hidden_layers={value}"], "num_hidden_layers") for value in ("-1", "x", "0", "null", "2.5")),
    (["model=roberta_base", "model.config.vocab_size=1"], "pad_token_id"),
    *(([f"task.metrics={value}"], "task") for value in ("[]", "[acc]", "accuracy")),
    *(([f"select.factors={value}"], "select.factors") for value in ("[]", "[0]", "[-1]", "x", "[a]")),
    (["select.rows=test"], "select.rows"),
    (["data=folder"], "data.path"),
    (["data=folder", "data.path=/nowhere"], "/nowhere"),
    (["data=folder", "data.path=3"], "data.path"),
    (["data.path=GLUE"], "data.path=GLUE: not read by data=sample, the built-in sample; add data=folder"),
    (["data=folder", "data.path=.", "data.revision=main"], "data.revision=main: not read by data=folder"),
    (["task=cola", "data=sample"], "data=sample"),
    (["task=ax"], "init_from"),
    (["protocol.lr=${nope}"], "nope"),
    (["protocol.lr={a"], "protocol.lr"),
    (["protocol.lr=[1,"], "protocol.lr"),
    (["method=lora,full"], "-m"),
    (["seed=0,1"], "-m"),
    (["~task"], "task"),
    (["~protocol.lr"], "protocol.lr"),
    (["-m", "method=lora,"], "method=lora,"),
    (["-m", "method=lora,nope"], "nope"),
    (["-m", "seed=range(3"], "seed=range(3"),
    (["-m", "protocol.lr=1e-3,fast"], "protocol.lr=fast"),
    (["-m", "hydra/launcher=cluster"], "hydra/launcher=cluster"),
]
COMMANDS: list[tuple[list[str], str]] = [
    (["verify", "nope", "--sample", "0"], "--sample: '0' is no whole number from 1"),
    (["verify", "nope", f"--sample={'x' * 3000}"], "--sample: 'xxxx"),
    (["status", f"--{'x' * 3000}"], "peftbench status: "),
    (["work", "nope", "--workers", "1001"], "'1001' is no whole number from 1 to 1,000"),
    *(([command, ".."], "study ..: no name of a study") for command in ("status", "table", "stop", "work")),
    *(([command, "a/b"], "study a/b: no name of a study") for command in ("report", "sync", "stop", "work")),
    (["merge", "from=..", "method=lora", "merge=ties"], "from=..: no name of a study"),
    (["collect", "."], ".: no folder of a study"),
    (["convert", "é/é"], "é/é: no such folder, and no owner/name"),
    (["compare", "nope", "--margin", "2", "a", "b"], "study nope: there is none"),
    (["submission", "", "--method", "m"], "study '': no name of a study"),
    (["table", "nope", "--format", ""], "--format"),
    (["verify", "nope", "--searchpath", "no/where"], "--searchpath no/where: no such folder"),
    (["compare", "nope", "a", "b", "--margin", "nan"], "--margin: 'nan' is no number"),
    (["plan", "--claim", "a > b"], "--claim a > b: is for --register"),
    (["plan", "--margin", "2"], "--margin 2: is for --register"),
    (["plan", "--save", "--register", "new/plan.yaml", "--claim", "a b"], "--claim a b"),
    (
        ["plan", "method=lora,bitfit", "seed=0,1", "--save", "--register", "/proc/p.yaml", "--claim", "lora > bitfit"],
        "--register /proc",
    ),
    (["backbone", "make=mlm", "model=bert_large_cased", "--to", "new/place"], "model=bert_large_cased: no weights"),
    (["backbone", "make=merged", "make.run=nope", "--to", "new"], "nope"),
    ([], "usage"),
    (["runn"], "did you mean run"),
    (["train"], "train: no such command"),
    (["-x"], "-x"),
    (["count", "method=nope"], "method=nope"),
    (["count", "--jsn"], "--jsn"),
    (["plan", "method=nope,lora"], "nope"),
    (["plan", "rerun=x"], "rerun"),
    (["list", "modls"], "did you mean"),
    (["status"], "study"),
    (["status", "nope"], "nope"),
    (["status", "a", "b"], "b"),
    (["table"], "study"),
    (["table", "nope"], "nope"),
    (["table", "nope", "--outputs", "/nowhere"], "/nowhere"),
    (["table", "nope", "--colour"], "--colour"),
    (["report", "nope"], "study nope"),
    (["report", "nope", "--to", "new/page.html"], "study nope"),
    (["plot", "nope", "--to", "new"], "study nope"),
    (["export"], "run"),
    (["export", "/nowhere", "--to", "x"], "/nowhere"),
    (["export", "/nowhere"], "--to"),
]
OF_METHODS = {  # where one wrong key is exactly one line
    f"method={word}"
    for word in (
        "adalora",
        "hut",
        "lst",
        "light_peft",
        "linear_adapter",
        "peft",
        "vera",
        "loha",
        "boft",
        "prefix_tuning",
    )
}
RTE = "index\tsentence1\tsentence2\tlabel\n"
STSB = "index\tgenre\tsentence1\tsentence2\tscore\n"
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
FILES: list[tuple[str, str, bytes, str]] = [  # task, folder, train.tsv, what the line must say
    ("rte", "RTE", b"", "train.tsv"),
    ("rte", "RTE", b"\n\n\n", "train.tsv"),
    ("rte", "RTE", RTE.encode(), "no rows"),
    ("rte", "RTE", b"\xff\xfe\x00", "not UTF-8"),
    ("rte", "RTE", b"PK\x03\x04\x00\x00\xa0\xa1", "train.tsv"),
    ("rte", "RTE", b'{"sentence1": "a"}\n', "line 1"),
    ("rte", "RTE", RTE.replace("\t", ",").encode() + b"0,a,b,entailment\n", "line 1"),
    ("rte", "RTE", RTE.encode() + b"0\ta\tb\n", "line 2"),
    ("rte", "RTE", RTE.encode() + b"0\ta\tb\tentailment\n1\ta\tb\tmaybe\n", "line 3"),
    ("rte", "RTE", RTE.encode() + b"0\ta\tb\tentailment\textra\n", "line 2"),
    ("rte", "RTE", RTE.encode() + b"0\ta\tb\t1\n", "line 2"),
    ("rte", "RTE", RTE.encode() + b"0\ta\tb\t\n", "line 2"),
    ("rte", "RTE", RTE.replace("label", "Label").encode() + b"0\ta\tb\tentailment\n", "'label'"),
    ("rte", "RTE", RTE.encode() + "0\tä\tb\tentailment\n".encode("latin-1"), "not UTF-8"),
    ("rte", "RTE", (RTE + "0\ta\tb\tentailment\n").encode("utf-16"), "not UTF-8"),
    ("stsb", "STS-B", STSB.encode() + b"0\tnews\ta\tb\thigh\n", "line 2"),
    ("stsb", "STS-B", STSB.encode() + b"0\tnews\ta\tb\tnan\n", "line 2"),
    ("stsb", "STS-B", STSB.encode() + b"0\tnews\ta\tb\tinf\n", "line 2"),
    ("stsb", "STS-B", STSB.encode() + b"0\tnews\ta\tb\t3,5\n", "line 2"),
    ("stsb", "STS-B", STSB.encode() + b"0\tnews\ta\tb\t6.5\n", "line 2"),
    ("stsb", "STS-B", STSB.encode() + b"0\tnews\ta\t3\n", "line 2"),
    ("cola", "CoLA", b"gj04\t2\t\tA sentence.\n", "line 1"),
    ("cola", "CoLA", b"gj04\t1\tA sentence.\n", "line 1"),
    ("sst2", "SST-2", b"sentence\tlabel\nfine\tgood\n", "line 2"),
    ("sst2", "SST-2", b"label\nfine\n", "'sentence'"),
    ("mrpc", "MRPC", MRPC.encode() + b"yes\t1\t2\ta\tb\n", "line 2"),
    ("qnli", "QNLI", b"index\tquestion\tsentence\tlabel\n0\ta\tb\tneutral\n", "line 2"),
    ("wnli", "WNLI", b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tTrue\n", "line 2"),
]
YAMLS: list[tuple[str, str]] = [  # a user's own conf/method/mine.yaml, what the line must say
    ("", "method"),
    ("rank: 8\n", "_target_"),
    ("_target_: peftbench.methods.lora.LoRA\n\trank: 8\n", "mine"),
    ("_target_: peftbench.methods.lora.LoRA\nrank: [8\n", "mine"),
    ("_target_: peftbench.methods.lora.LoRA\ndefault_lr: 1e-3\nrnak: 8\n", "method.rnak"),
    ("_target_: peftbench.methods.lora.LoRA\ndefault_lr: x\n", "protocol.lr"),
    ("_target_: peftbench.methods.lora.LoRA\nrank: 8\n", "default_lr"),
    ("_target_: mine.Method\ndefault_lr: 1.0e-3\n", "mine.Method"),
    ("_target_: peftbench.methods.lora\ndefault_lr: 1.0e-3\n", "method._target_"),
    ("- a\n- b\n", "mine"),
    ("just words\n", "mine"),
    ("_target_: peftbench.methods.bitfit.BitFit\ndefault_lr: 1.0e-3\nkinds: [biases]\n", "method.kinds"),
    ("_target_: peftbench.methods.bitfit.BitFit\ndefault_lr: 1.0e-3\nkinds: ${method.kinds}\n", "method.kinds"),
    ("defaults: [nope]\n_target_: peftbench.methods.bitfit.BitFit\n", "nope"),
    ("_target_: ${nope}\ndefault_lr: 1.0e-3\n", "nope"),
    ("_target_: peftbench.methods.bitfit.BitFit\ndefault_lr: -1\nkinds: null\n", "protocol.lr"),
]


def left_behind(folder: Path) -> list[Path]:
    """Everything in it but the cache, which may remember the hash of a file that was read."""
    return sorted(path for path in folder.rglob("*") if path.relative_to(folder).parts[0] != "cache")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call the command where nothing may be written; gives what it said when it refused."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, naming: str) -> str:
        before = left_behind(tmp_path)
        monkeypatch.setattr(sys, "argv", ["peftbench", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        configured = not OF_METHODS.isdisjoint(words)
        assert ended.value.code in ((2,) if configured else (2, 3)), (words, out, err)
        text = err or out
        assert "Traceback" not in text
        assert naming in text, text
        if "usage" not in text:
            assert len(text.splitlines()) <= 4, text
        assert left_behind(tmp_path) == before
        return text

    return call


@pytest.mark.parametrize(("words", "naming"), LINES, ids=lambda value: " ".join(value)[:40])
def test_command_lines(said: Callable[..., str], words: list[str], naming: str) -> None:
    text = said("run", *words, naming=naming)
    if not OF_METHODS.isdisjoint(words):
        assert len(text.splitlines()) == 1, text


@pytest.mark.parametrize(("words", "naming"), COMMANDS, ids=lambda value: " ".join(value)[:40])
def test_commands(said: Callable[..., str], words: list[str], naming: str) -> None:
    said(*words, naming=naming)


@pytest.mark.parametrize(("task", "folder", "content", "naming"), FILES)
def test_data_files(
    tmp_path: Path, said: Callable[..., str], task: str, folder: str, content: bytes, naming: str
) -> None:
    (tmp_path / folder).mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / folder / name).write_bytes(content)
    text = said("run", *TINY, f"task={task}", "data=folder", f"data.path={tmp_path}", naming=naming)
    assert "train.tsv" in text or "no rows" in text


@pytest.mark.parametrize(("content", "naming"), YAMLS)
def test_yaml_files(tmp_path: Path, said: Callable[..., str], content: str, naming: str) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text(content)
    text = said("run", *TINY, f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "method=mine", naming=naming)
    assert "method=mine" in text or "mine.yaml" in text, "the file, too, where a key of it is wrong"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(word=st.text(min_size=1, max_size=30).filter(lambda word: "\0" not in word and word.strip() not in ("-h",)))
@example(word="protocol.lr=${oc.env:NOPE}")
@example(word="method.rank=${eval:1}")
@example(word="\ud800")
@example(word="[")
@example(word="hydra.mode=MULTIRUN")
def test_any_other_text_is_an_override_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["peftbench", "count", "model=bert_tiny", word])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert ended.value.code in (0, 2, 3)
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["model=nope", "method=bitfit", "protocol.lrr=1", "seed=1"], ["model", "protocol.lrr"]),
        (["task=mrpc", "method.rnak=1", "scope=nope", "seed=1", "tracker.x=1"], ["method.rnak", "scope", "tracker.x"]),
        (["seed=1", "protocol.epochs=2", "method.rnak=1"], ["method.rnak"]),
    ],
)  # fmt: skip
def test_every_wrong_word_among_good_ones_is_named_and_no_other(words: list[str], wrong: list[str]) -> None:
    with pytest.raises(compose.WrongWords) as refused:
        compose.load(words)
    assert [word for word in words if word in refused.value.overrides] == [
        w for w in words if w.partition("=")[0] in wrong
    ]
    assert [problem.partition(":")[0].partition("=")[0] for problem in refused.value.every] == wrong
