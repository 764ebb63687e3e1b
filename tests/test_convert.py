"""Pickles become safetensors once, by a command of its own: read without running anything, whole or not at all."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint
from forgery import Said
from huggingface_hub import constants
from safetensors.torch import load_file
from support import call, start

from peftbench.backbone.weights import file_sha256
from peftbench.ground.errors import DataError
from peftbench.runner import convert
from peftbench.runner.run import Outcome

ROOT = Path(convert.__file__).parents[1]


def pickled(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder, put into a pickle instead; two names share one tensor, as tied weights do."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors["cls.predictions.decoder.weight"] = tensors[name]
    torch.save(tensors, folder / "pytorch_model.bin")
    return tensors


def test_a_pickle_becomes_safetensors_and_a_run_reads_that(
    tmp_path: Path, run_tiny: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    words = ["method=lora", "protocol.max_steps=1", *checkpoint("bert_base_cased", folder)]
    tensors = pickled(folder)
    with pytest.raises(DataError, match=rf"a pickle, which no run reads; peftbench convert {folder} writes"):
        run_tiny(*words)
    done = start("convert", str(folder), cwd=tmp_path)
    told = f"{folder / 'pytorch_model.bin'}: no model's yaml pins it; model=WORD asks for that one's\n"
    assert (done.returncode, done.stderr) == (0, told)
    assert done.stdout == f"{folder / 'model.safetensors'}\n"
    written = load_file(folder / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    monkeypatch.setattr(torch, "load", None)  # a run never asks for it
    assert run_tiny(*words).error is None
    with pytest.raises(DataError, match="is there already"):
        convert.convert(str(folder))


def test_shards_become_one_file(tmp_path: Path) -> None:
    shards = [{"a": torch.arange(6).reshape(2, 3).t()}, {"b": torch.ones(2, dtype=torch.bfloat16)}]
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for name, tensors in zip(names, shards, strict=True):
        torch.save(tensors, tmp_path / name)
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (tmp_path / convert.INDEX).write_text(json.dumps(index))
    written = load_file(convert.convert(str(tmp_path)))
    assert torch.equal(written["a"], shards[0]["a"])
    assert torch.equal(written["b"], shards[1]["b"])


class Calls:
    """What a hostile pickle holds: a call, made when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


def put(folder: Path, content: Any, protocol: int = 2) -> None:
    torch.save(content, folder / "pytorch_model.bin", pickle_protocol=protocol)


def squeezed(folder: Path) -> None:
    put(folder, {"a": torch.zeros(1 << 20)})
    with zipfile.ZipFile(folder / "pytorch_model.bin") as archive:
        parts = {item.filename: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def index(folder: Path, *names: Any) -> None:
    (folder / convert.INDEX).write_text(json.dumps({"weight_map": dict(enumerate(names))}))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: None, "no pytorch_model.bin there, and no pytorch_model.bin.index.json"),
    "call": (lambda f: put(f, Calls(os.system, f"touch {f}/ran")), "not a file of tensors alone"),
    "call among tensors": (lambda f: put(f, {"a": Calls(os.mkdir, f"{f}/ran")}), "not a file of tensors alone"),
    "plain pickle": (
        lambda f: (f / "pytorch_model.bin").write_bytes(pickle.dumps(Calls(os.mkdir, f"{f}/ran"), 2)),
        "not a file of tensors alone",
    ),
    "eval": (lambda f: put(f, Calls(eval, f"open('{f}/ran', 'w')")), "not a file of tensors alone"),
    "empty": (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "not a file of tensors alone"),
    "noise": (lambda f: (f / "pytorch_model.bin").write_bytes(os.urandom(999)), "not a file of tensors alone"),
    "cut": (
        lambda f: (put(f, {"a": torch.ones(999)}), os.truncate(f / "pytorch_model.bin", 2000)),
        "not a file of tensors alone",
    ),
    "compressed": (squeezed, "its parts are compressed"),
    "one number over and over": (lambda f: put(f, {"a": torch.ones(1).expand(1 << 40)}), "come to 4,398,046,511,104"),
    "a list": (lambda f: put(f, [torch.ones(2)]), "holds a list, not tensors by name"),
    "nothing": (lambda f: put(f, {}), "holds a dict, not tensors by name"),
    "nested": (lambda f: put(f, {"state_dict": {"a": torch.ones(2)}}), "state_dict is a dict, not a named tensor"),
    "sparse": (lambda f: put(f, {"a": torch.eye(3).to_sparse()}), "not a named tensor"),
    "complex": (lambda f: put(f, {"a": torch.ones(3).to(torch.complex128)}), "not a named tensor"),
    "shard elsewhere": (lambda f: index(f, "../pytorch_model-00001-of-00001.bin"), "is no shard beside it"),
    "shard that is a number": (lambda f: index(f, 3), "is no shard beside it"),
    "shard that is absent": (lambda f: index(f, "pytorch_model-00001-of-00001.bin"), "is no shard beside it"),
    "index that is none": (lambda f: (f / convert.INDEX).write_text("[]"), "names no shards"),
    "index that is cut": (lambda f: (f / convert.INDEX).write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_not_tensors_alone_is_refused_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # nobody may loosen the loader from outside
    make, line = HOSTILE[kind]
    make(tmp_path)
    with pytest.raises(DataError, match=line) as caught:
        convert.convert(str(tmp_path))
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_command_refuses_with_exit_code_3(tmp_path: Path) -> None:
    put(tmp_path, Calls(os.mkdir, f"{tmp_path}/ran"))
    for source in (str(tmp_path), "nowhere", "a/b/c", "../x"):
        refused = call("convert", source, cwd=tmp_path)
        assert refused.returncode == 3, source
        assert refused.stderr.count("\n") == 1
        assert len(refused.stderr) <= 201
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_the_hub_must_be_the_pinned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's cache, filled by hand: nothing is downloaded."""
    revision = "6f75de8b60a9f8a2fdf7b69cbd86d9e64bcb3837"
    folder = tmp_path / "models--prajjwal1--bert-tiny" / "snapshots" / revision
    folder.mkdir(parents=True)
    put(folder, {"a": torch.ones(2)})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="not the pinned dab2c2bddcfb48ea"):
        convert.convert("prajjwal1/bert-tiny")
    pins = {"revision": revision, "pickle_sha256": file_sha256(folder / "pytorch_model.bin")}
    monkeypatch.setattr(convert, "pins", lambda name: pins)
    assert convert.convert("prajjwal1/bert-tiny") == folder / "model.safetensors"


def test_several_pickles_are_refused_where_one_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's cache, filled by hand, and a folder of somebody who says what it is."""
    revision = "6f75de8b60a9f8a2fdf7b69cbd86d9e64bcb3837"
    folder = tmp_path / "models--prajjwal1--bert-tiny" / "snapshots" / revision
    folder.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name = "pytorch_model-00001-of-00001.bin"
    torch.save({"a": torch.ones(2)}, folder / name)
    index(folder, name)
    for words in (["prajjwal1/bert-tiny"], [str(folder), "bert_tiny"]):
        with pytest.raises(DataError, match=r"has 1 shard, and what is pinned is one pytorch_model\.bin"):
            convert.convert(*words)
    assert not list(folder.glob("*.safetensors"))
    assert convert.convert(str(folder)).name == "model.safetensors"


def test_a_folders_pickle_is_held_against_the_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Said]
) -> None:
    put(tmp_path, {"a": torch.ones(2)})
    refused = command("convert", str(tmp_path), "model=bert_tiny")
    assert refused[0] == 3
    assert "not the pinned dab2c2bddcfb48ea" in refused[2]
    for word, line in (
        ("model=bert_tny", "model=bert_tny: there is no such model; did you mean bert_tiny"),
        ("model=minilm_l6", "model=minilm_l6: its yaml pins no pytorch_model.bin"),
        ("bert_tiny", "bert_tiny: must be model=WORD"),
        ("model=", "model=: must be model=WORD"),
    ):
        said = command("convert", str(tmp_path), word)
        assert (said[0], line in said[2]) == (2, True), said
    assert not (tmp_path / "model.safetensors").exists()
    pins = {"mine": {"pickle_sha256": file_sha256(tmp_path / "pytorch_model.bin")}}
    monkeypatch.setattr(convert, "model_yamls", lambda: pins)
    said = command("convert", str(tmp_path))
    assert (said[0], said[2]) == (0, f"{tmp_path / 'pytorch_model.bin'}: is what model=mine pins\n")
    (tmp_path / "model.safetensors").unlink()
    assert command("convert", str(tmp_path), "model=mine") == (0, f"{tmp_path / 'model.safetensors'}\n", "")


def test_nothing_else_reads_pickles() -> None:
    words = ("torch.load(", "pickle.load", "weights_only")
    readers = {path.name for path in ROOT.rglob("*.py") if any(word in path.read_text() for word in words)}
    assert readers == {"convert.py"}
