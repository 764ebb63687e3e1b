"""Every yaml composes and is valid; whatever is wrong gets one line that names it."""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from peftbench import papers
from peftbench.config import compose, recipes, spec, words
from peftbench.config.fingerprint import canonical, digest
from peftbench.config.validate import method_class
from peftbench.ground.errors import ConfigError
from peftbench.lifecycle.editable import Edit
from peftbench.lifecycle.merging import METHODS
from peftbench.lifecycle.port import Port
from peftbench.lifecycle.sequence import words as sequences

ROOT = compose.conf_dir()
YAMLS = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.yaml")
    if not path.name.startswith("_") and path.parent != ROOT and path.parent.name != "local"
)
NEEDS = {"data/folder.yaml": ["data.path=."], "task/ax.yaml": [], "method/peft.yaml": ["method.type=vera"]}
NEEDS["selftrain/list.yaml"] = ["shots.total=30"]
NEEDS["task/joint.yaml"] = ["task.tasks=[rte,sst2]"]


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_every_yaml_composes_and_is_valid(path: Path) -> None:
    if path.parent.name == "paper":  # data of the report, not a part of a cell
        assert papers.load(path.stem).rows
        return
    word = f"{path.parent}={path.stem}"
    if path.parent.name == "make":  # for `peftbench backbone`, not a part of a cell
        assert recipes.split_words([word, "seed=1"])[1] == ["seed=1"]
        return
    if path.parent.name == "merge":  # likewise for `peftbench merge`
        assert recipes.recipe("merge", [word, "seed=1"], METHODS.__getitem__)[1] == ["seed=1"]
        return
    if path.parent.name == "port":  # and for `peftbench port`
        assert recipes.recipe("port", [word, "seed=1"], lambda _: Port)[1] == ["seed=1"]
        return
    if path.parent.name in ("sequence", "learner"):  # and for `peftbench sequence`
        own = [word] if path.parent.name == "learner" else [word, "learner=simplecil"]
        assert sequences.ask([*own, "data=folder", "data.path=."])[0].fingerprint
        return
    if path.parent.name == "edit":  # and for `peftbench edit`
        assert recipes.recipe("edit", [word, "seed=1"], lambda _: Edit)[1] == ["seed=1"]
        return
    extra = NEEDS.get(str(path), [])
    if str(path) in ("task/ax.yaml", "objective/muscle.yaml"):
        with pytest.raises(ConfigError, match="init_from"):
            compose.cell_from([word])
        return
    assert compose.cell_from([word, *extra]).fingerprint


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_every_yaml_says_what_it_is(path: Path) -> None:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    first, second = [line for line in lines if not line.startswith("# @")][:2]
    if path.parent.name in words.LISTED and not path.stem.startswith("_") and second.startswith("# "):
        assert first.endswith((".", ")")), "peftbench list shows this line alone"


BAD = [
    (["model=gpt2"], ["bert_mini, bert_small, bert_tiny, ..."]),
    (["task=ret"], ["task=ret: there is no task called 'ret'; did you mean rte"]),
    (["method=lra"], ["did you mean lora"]),
    (["protocol.lrr=1"], ["protocol.lrr: there is no such key; did you mean protocol.lr"]),
    (["methd=lora"], ["methd: there is no such key; did you mean method"]),
    (["method=bitfit", "method.rank=4"], ["method.rank: there is no such key"]),
    (["protocol.lr=0"], ["protocol.lr=0: must be greater than 0"]),
    (["protocol.lr=-1e-3"], ["protocol.lr=-0.001: must be greater than 0"]),
    (["protocol.lr=fast"], ["protocol.lr=fast: must be a number"]),
    (["protocol.lr=nan"], ["protocol.lr=nan: must be"]),
    (["protocol.epochs=1.5"], ["protocol.epochs=1.5: must be a whole number"]),
    (["protocol.bucketing=maybe"], ["protocol.bucketing=maybe: must be true or false"]),
    (["protocol.precision=fp16"], ["protocol.precision=fp16: did you mean bf16 or fp32"]),
    (["protocol.warmup=1"], ["protocol.warmup=1: must be less than 1"]),
    (["protocol.evaluate_every=0"], ["protocol.evaluate_every=0: must be epoch or must be greater than 0"]),
    (["protocol.accumulation=64"], ["protocol.accumulation=64: more parts than"]),
    (["protocol.max_length=513"], ["protocol.max_length=513: minilm_l6 has 512 positions"]),
    (["method.rank=0"], ["method.rank=0: must be greater than 0"]),
    (["method.kinds=[query,valu]"], ["method.kinds.1=valu: did you mean value"]),
    (["scope.layers=4-6"], ["scope.layers=4-6: outside the backbone, which has layers 0 to 5"]),
    (["scope.layers=[0,9]"], ["scope.layers=[0, 9]: outside the backbone"]),
    (["scope.layers=top"], ["scope.layers=top: must be a range like 2-5 or a list"]),
    (["scope.kinds=[bias]"], ["scope.kinds.0=bias:"]),
    (["task.headline=f2"], ["task.headline=f2: not scored; allowed: accuracy"]),
    (["data=folder"], ["data.path: must be given, as data.path=..."]),
    (["seed=-1"], ["seed=-1: must be at least 0"]),
    (["seed=one"], ["seed=one: must be a whole number"]),
    (["study=a/b"], ["study=a/b: must be letters"]),
    (["init_from=/nowhere"], ["init_from=/nowhere: no delta.safetensors there"]),
    (["task=ax"], ["task=ax: has no training rows; give init_from"]),
    (["+lr=1"], ["lr: there is no such key"]),
    (["+protocol.momentum=1"], ["protocol.momentum: there is no such key"]),
    (["method._target_=os.system"], ["method._target_=os.system: not a method"]),
    (["method._target_=no.such.Thing"], ["method._target_=no.such.Thing: no such class"]),
    (["method=lora,full"], ["a sweep needs -m"]),
    (["task=null"], ["task=null"]),
    (["~task"], ["task: must be chosen"]),
    (["task"], ["task: not of the form key=value"]),
    (["protocol.lr=${nope}"], ["nope"]),
    (["protocol.betas=[0.9]"], ["protocol.betas"]),
    (["method=id3_lora", "+method.inner.rnk=3"], ["method.inner.rnk: there is no such key; did you mean rank"]),
    (["method=../method/lora"], ["method=../method/lora: must be a word, not a path"]),
    (["method.rank=99999999999999999999999999"], ["method.rank=99999999999999999999999999: must be at most"]),
    (["model.config.type_vocab_size=-1"], ["model.config.type_vocab_size=-1: must be a whole number, at least 0"]),
    (["model.config.pad_token_id=null"], ["model.config.pad_token_id=null: not among the 30522 of vocab_size"]),
    (
        ["~model.config.vocab_size", "~model.config.num_hidden_layers"],
        ["vocab_size: must", "model.layout.depth=num_hidden_layers: model.config has no such key"],
    ),
    (
        ["model=roberta_base", "model.config.pad_token_id=500"],
        ["max_length=128: roberta_base has 13 positions"],
    ),
    (["model.config.layer_norm_eps=-1"], ["model.config.layer_norm_eps=-1: must be a number between 0 and 1"]),
    (["data.path=a=b#(c,d"], ["is quoted: 'data.path="]),
    (
        ["task=ret", "protocl.epochs=3", "protocol.lr=-1", "method.rank=0", "seed=x"],
        ["task=ret", "protocl.epochs", "protocol.lr=-1", "method.rank=0", "seed=x"],
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), BAD, ids=lambda words: " ".join(words)[:40])
def test_bad_input_is_named_in_one_line_each(overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.cell_from(overrides)
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == len(expected)
    for line in expected:
        assert any(line in problem for problem in caught.value.problems), caught.value.problems
    assert not any("\n" in problem for problem in caught.value.problems)


def test_pins_are_whole_and_nothing_is_pinned_without_its_place() -> None:
    for word in compose.words("model"):
        model = compose.cell_from([f"model={word}"]).model
        for pin, digits in ((model.revision, 40), (model.sha256, 64), (model.pickle_sha256, 64)):
            assert pin is None or re.fullmatch(f"[0-9a-f]{{{digits}}}", pin), (word, pin)
            assert pin is None or model.hub, word
        assert not model.sha256 or model.revision, f"{word}: a hash belongs to a commit"
        assert not model.pickle_sha256 or model.revision, f"{word}: a hash belongs to a commit"
    revision = compose.cell_from(["data=hub"]).data.revision
    assert revision is not None
    assert re.fullmatch("[0-9a-f]{40}", revision)


def test_a_scope_in_which_nothing_can_train_is_refused() -> None:
    from peftbench.runner.counts import count_cell

    with pytest.raises(ConfigError, match=r"no linear map in layers \[0\], kinds \['layer_norm'\]"):
        count_cell(compose.cell_from(["scope.layers=0", "scope.kinds=[layer_norm]", "method.kinds=null"]))
    with pytest.raises(ConfigError, match="no bias"):
        count_cell(compose.cell_from(["model=modernbert_base", "method=bitfit"]))


def test_the_fingerprint_knows_what_decides_a_score() -> None:
    plain = compose.cell_from([])
    for same in (["seed=3"], ["study=x"], ["progress=false"], ["tracker=none"], ["protocol.lr=0.0005"]):
        assert compose.cell_from(same).fingerprint == plain.fingerprint, same
    for other in (["protocol.lr=1e-4"], ["task=rte"], ["method.rank=4"], ["scope.layers=0-2"], ["data.limit=9"]):
        assert compose.cell_from(other).fingerprint != plain.fingerprint, other
    assert compose.cell_from(["seed=3"]).folder != plain.folder


def test_two_dev_sets_are_told_apart() -> None:
    task = compose.cell_from(["task=mnli_mismatched"]).task
    assert task.scored() == {
        "accuracy_matched": ("dev_matched", "accuracy"),
        "accuracy_mismatched": ("dev_mismatched", "accuracy"),
    }
    assert (task.headline, task.plain_headline) == ("accuracy_mismatched", "accuracy")
    assert compose.cell_from(["task=mrpc"]).task.scored() == {"accuracy": ("dev", "accuracy"), "f1": ("dev", "f1")}


def test_each_method_brings_its_learning_rate() -> None:
    assert compose.cell_from(["method=lora"]).protocol.lr == 5e-4
    assert compose.cell_from(["method=full"]).protocol.lr == 5e-5
    assert compose.cell_from(["method=full", "protocol.lr=0.1"]).protocol.lr == 0.1


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_digest_does_not_see_how_a_value_is_written(value: object) -> None:
    assert digest({"a": value, "b": 1}) == digest({"b": 1.0, "a": value})
    assert canonical((1.0, 2.5)) == [1, 2.5]


def test_numbers_of_which_no_model_can_be_made_are_named() -> None:
    from peftbench.runner.counts import count_cell

    with pytest.raises(ConfigError, match=r"model.config.hidden_act=gelo: no bert can be made of it"):
        count_cell(compose.cell_from(["model.config.hidden_act=gelo"]))
    with pytest.raises(ConfigError, match=r"model.model_type=nope: ") as caught:
        count_cell(compose.cell_from(["model.model_type=nope"]))
    assert max(map(len, caught.value.problems)) <= 200


def _unbounded(schema: Any, path: str) -> Iterator[str]:
    """The numbers of a JSON schema that have no least or no greatest value."""
    if isinstance(schema, dict):
        bounds = {key.removeprefix("exclusive").lower() for key in schema if key.lower().endswith("imum")}
        if schema.get("type") in ("integer", "number") and bounds != {"minimum", "maximum"}:
            yield path
    for key, inner in (
        schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    ):
        yield from _unbounded(inner, f"{path}.{key}")


def test_every_number_of_a_cell_has_bounds_on_both_sides() -> None:
    methods = {path.stem for path in YAMLS if path.parent.name == "method"} - {"peft"}
    classes = {
        method_class(compose.cell_from(["model.weights=random", f"method={word}"]).method.target) for word in methods
    }
    parts = [
        spec.ModelSpec,
        spec.TaskSpec,
        spec.DataSpec,
        spec.Scope,
        spec.Budget,
        spec.Protocol,
        spec.Select,
        spec.TrackerSpec,
        spec.ObjectiveSpec,
    ]
    numbers = [
        path for kind in [*classes, *parts] for path in _unbounded(TypeAdapter(kind).json_schema(), kind.__name__)
    ]
    assert not numbers


def test_numbers_of_a_bridged_method_are_bounded_before_anything_is_built() -> None:
    for key, value in (("r", -7), ("r", 10**26), ("vera_dropout", -1e300), ("d_initial", "1e26")):
        with pytest.raises(ConfigError, match=rf"method\.config\.{key}=.*must be"):
            compose.cell_from(["model.weights=random", "method=vera", f"method.config.{key}={value}"])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["method=spafit", "method.strata.frozen.last=-7"],
            "method.strata.frozen.last=-7: must be at least -1",
        ),
        (["protocol.lr=${nope}"], "protocol.lr=${nope}: Interpolation key 'nope' not found"),
        ([f"outputs={'x' * 300}"], "outputs=xxx"),
        ([f"cache={'a/' * 2000}"], "cache=a/a/"),
        (["init_head=old"], "init_head=old: must be one of new, kept"),
        (["init_head=kept"], "init_head=kept: of which run? init_from=<its folder> says it"),
        (["checkpoint_every=1e26"], "checkpoint_every=1e+26: must be seconds up to 1e+09, or null"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_line_names_the_innermost_key(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.cell_from(["model.weights=random", *overrides])
    assert caught.value.problems[0].startswith(line)
    assert len(caught.value.problems) == 1


def test_more_than_six_problems_are_counted() -> None:
    with pytest.raises(ConfigError) as caught:
        compose.cell_from([f"nope{i}=1" for i in range(9)])
    assert len(caught.value.problems) == 6
    assert caught.value.problems[-1] == "and 4 more problems"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "naming"),
    [(BOMB, "aliases"), ("a: &a [*a]\n", "contains itself"), ("a: " + "[" * 3000 + "]" * 3000, "deeper")],
)
def test_yaml_that_grows_without_end_is_refused(tmp_path: Path, text: str, naming: str) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"mine.yaml: .*{naming}"):
        compose.cell_from([f"hydra.searchpath=[file://{tmp_path}]", "method=mine"])


def plain(overrides: Sequence[str]) -> dict[str, object]:
    """What is composed, unresolved."""
    config = OmegaConf.to_container(words.composed(overrides))
    assert isinstance(config, dict)
    config["hydra"]["job"].pop("override_dirname")
    return config


@pytest.mark.parametrize(
    "overrides",
    [
        ["protocol.lr=0.1", "method=bitfit", "seed=3", "task=rte", "protocol.lr=2e-3"],
        ["method=lora", "method.kinds=[query,'key']", "study=a b", 'outputs="x=1,2"', "task.score_range=null"],
        ["method=spafit", "method.strata.frozen.last=-1", "model.config.vocab_size=7", "budget=none"],
        ["scope.layers=${seed}", "model.config={vocab_size: 9}", "tracker.tags=[]", "progress=false"],
        ["experiment=demo", "protocol.max_steps=${protocol.batch_size}", "data.limit=5"],
        ["checkpoint_every=null", "predict_test=true", "init_from='a b/seed${seed}'", "cache=c", "cells_per_gpu=2"],
    ],
)
def test_values_on_words_composed_before_are_what_hydra_makes_of_all(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = plain(overrides), plain(overrides)
    again = plain([word for word in overrides if "." not in word])
    monkeypatch.setattr(words, "with_values", lambda overrides: None)
    assert quick == (plain(overrides),) * 2
    assert again == plain([word for word in overrides if "." not in word]), "what is kept stays as it was"


def test_in_another_folder_hydra_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["method=lora", "protocol.lr=0.1", "checkpoint_every=0", "init_from=run", "predict_test=true"]
    words.composed(["method=lora", "seed=1"])
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(words, "compose", None)
        quick = plain(overrides)
    monkeypatch.setattr(words, "with_values", lambda overrides: None)
    assert quick == plain(overrides)
    assert words.composed(overrides).hydra.runtime.cwd == str(tmp_path)


def test_a_yaml_file_that_changes_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT, tmp_path / "conf")
    monkeypatch.setattr(words, "conf_dir", lambda: tmp_path / "conf")
    file = tmp_path / "conf" / "method" / "lora.yaml"
    assert words.composed(["method=lora"]).method.rank == 8
    file.write_text(re.sub(r"rank: 8", "rank: 16", file.read_text(encoding="utf-8")))
    assert words.composed(["method=lora"]).method.rank == 16
