"""A folder of weights that is not what it should be: one line that says so, before training, and no record."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import SMALL, WORDS, checkpoint
from safetensors.torch import load_file, save_file

from peftbench.backbone.model import load_model
from peftbench.backbone.weights import weights_folder
from peftbench.config import compose
from peftbench.ground.errors import ConfigError, DataError
from peftbench.runner.run import Outcome


def config_of(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


def rows(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name] = torch.cat([tensors[name], tensors[name][:2]])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def no_tokenizer(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("config.json", "model.safetensors"):
            path.unlink()


def tokenizer(folder: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    raw = json.loads((folder / "tokenizer.json").read_text())
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def other_padding(folder: Path) -> None:
    config_of(folder, pad_token_id=3)
    padding_token(folder, "[unused2]")


def padding_token(folder: Path, token: str | None) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            raw = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**raw, "pad_token": token}))


def larger(raw: dict) -> None:  # type: ignore[type-arg]
    raw["model"]["vocab"]["onemoreword"] = 30522


def only_letters(raw: dict) -> None:  # type: ignore[type-arg]
    raw["model"]["vocab"] = {k: v for k, v in raw["model"]["vocab"].items() if k.startswith("[")}


def renamed(folder: Path, to: str) -> None:
    (folder / "model.safetensors").rename(folder / to)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: (f / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"), "model.safetensors is damaged"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
    "config": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "endless config": (lambda f: config_of(f, a="b" * (1 << 20)), "larger than 1,048,576"),
    "config list": (lambda f: (f / "config.json").write_text("[]"), "config.json is a None"),
    "code": (lambda f: config_of(f, model_type="mine", auto_map={"AutoConfig": "evil.C"}), "config.json is a mine"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "shape": (rows, r"word_embeddings.weight is \(30524, 384\), config.json makes it \(30522, 384\)"),
    "no tokenizer": (no_tokenizer, "no tokenizer there"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer cannot be read"),
    "larger": (lambda f: tokenizer(f, larger), "its ids go to 30522, the embedding has 30,522 rows"),
    "unknown": (lambda f: tokenizer(f, only_letters), r"every word becomes \[UNK\]"),
    "no padding token": (lambda f: padding_token(f, None), "it has no padding token"),
    "padding": (other_padding, "config.json has pad_token_id=3, conf/model/minilm_l6.yaml 0"),
    "activation": (lambda f: config_of(f, hidden_act="relu"), "config.json has hidden_act=relu, .* gelu"),
    "epsilon": (lambda f: config_of(f, layer_norm_eps=1e-5), "config.json has layer_norm_eps=1e-05, .* 1e-12"),
    "special": (lambda f: config_of(f, sep_token_id=7), "its sep_token_id is 102, config.json has 7"),
    "pickle": (lambda f: renamed(f, "pytorch_model.bin"), "only pytorch_model.bin: a pickle"),
    "shards": (lambda f: renamed(f, "model.safetensors.index.json"), "only model.safetensors.index.json: shards"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_folder_is_refused_in_one_line(kind: str, tmp_path: Path, run_tiny: Callable[..., Outcome]) -> None:
    source = weights_folder(compose.cell_from([]).model)
    assert source is not None
    folder = Path(shutil.copytree(source, tmp_path / "weights"))
    spoil, line = BAD[kind]
    spoil(folder)
    words = ["model=minilm_l6", f"model.weights={folder}", "model.sha256=null", "model.config.vocab_size=30522"]
    with pytest.raises(DataError, match=line) as caught:
        run_tiny(*words)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("result.json"))


LURES = {
    "config.json": {"auto_map": {name: f"lure.{name}" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")}},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["lure.Slow", "lure.Fast"]}, "tokenizer_class": "Fast"},
}


@pytest.mark.parametrize("name", LURES)
def test_code_in_a_folder_of_a_known_architecture_is_never_run(
    name: str, tmp_path: Path, run_tiny: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    words = checkpoint("bert_base_uncased", folder)
    (folder / "lure.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nclass Fast: pass\n")
    raw = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**raw, **LURES[name]}))
    monkeypatch.chdir(folder)
    outcome = run_tiny(*words)
    assert outcome.record.status == "done"
    assert not (tmp_path / "trace").exists()
    assert not [module for module in sys.modules if "lure" in module]


@pytest.mark.parametrize("name", ["cls", "sep", "bos", "eos"])
def test_every_special_id_is_the_models(name: str, tmp_path: Path, run_tiny: Callable[..., Outcome]) -> None:
    folder = tmp_path / "weights"
    words = checkpoint("roberta_base", folder)
    raw = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**raw, f"{name}_token": "film"}))
    own, stated = WORDS.index("film"), SMALL[f"{name}_token_id"]
    config_of(folder, **{f"{name}_token_id": stated})
    with pytest.raises(DataError, match=f"its {name}_token_id is {own}, config.json has {stated}"):
        run_tiny(*words)
    config_of(folder, **{f"{name}_token_id": own})
    assert run_tiny(*words).record.status == "done"


def test_a_tokenizer_may_have_fewer_words_than_the_model_has_rows(
    tmp_path: Path, run_tiny: Callable[..., Outcome]
) -> None:
    folder = tmp_path / "weights"
    words = checkpoint("bert_base_uncased", folder)
    tokenizer(folder, lambda raw: [raw["model"]["vocab"].pop(word) for word in WORDS[-5:]])
    assert run_tiny(*words).record.status == "done"


def test_dropout_of_loaded_weights_is_what_the_cell_says(tmp_path: Path) -> None:
    words = checkpoint("bert_base_uncased", tmp_path / "weights")
    config_of(tmp_path / "weights", hidden_dropout_prob=0.3)
    plain = compose.cell_from(words).model
    assert load_model(plain, 2, seed=0)[0].module.config.hidden_dropout_prob == 0.3
    spec = compose.cell_from([*words, "+model.config.hidden_dropout_prob=0.0"]).model
    model, _ = load_model(spec, 2, seed=0)
    assert {dropout.p for name, dropout in model.module.named_modules() if name.endswith("output.dropout")} == {0.0}


@pytest.mark.parametrize("weights", ["random", "folder"])
def test_a_number_that_the_architecture_does_not_have_is_refused(
    weights: str, tmp_path: Path, run_tiny: Callable[..., Outcome]
) -> None:
    words = checkpoint("bert_base_uncased", tmp_path / "weights") + ["model.weights=random"] * (weights == "random")
    line = r"model\.config\.hiden_dropout_prob: bert has no such key; did you mean hidden_dropout_prob"
    with pytest.raises(ConfigError, match=line):
        run_tiny(*words, "+model.config.hiden_dropout_prob=0.0")
    assert not list(tmp_path.rglob("result.json"))
