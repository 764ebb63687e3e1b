"""Weights that exist only as a pickle, made into model.safetensors once. The only place that reads a pickle.

torch's restricted loader makes tensors and plain containers and calls nothing else that a pickle names.
"""

import functools
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from peftbench.backbone.weights import WEIGHTS_FILE, file_sha256
from peftbench.config import compose
from peftbench.data.hub import go_offline_unless_reachable
from peftbench.ground import untrusted
from peftbench.ground.errors import ConfigError, DataError, near, shown, warn
from peftbench.ground.files import expanded, write_atomically
from peftbench.ground.quantity import quantity

PICKLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
SHARD = re.compile(r"pytorch_model-\d{5}-of-\d{5}\.bin")
MOST_BYTES = 8 << 30  # of a pickle, and of all shards together
MOST_TIMES = 4  # what the tensors may come to, in sizes of the pickles: each name is written whole, shared or not
MOST_INDEX_BYTES = 16 << 20


def convert(source: str, model: str | None = None) -> Path:
    """Write model.safetensors beside the pickle in a folder, or in the Hub's cache for an `owner/name` there.

    Where nothing says which hash the pickle must have, a line on the terminal says whether any model's yaml pins it.

    Args:
        source: the folder, or the name.
        model: the word of the model whose yaml pins it; None: on the Hub the one that has this name, of a folder none.

    Raises:
        ConfigError: there is no such word, or its yaml pins no pickle.
        DataError: there is no pickle, it is not the one that a model's yaml pins, or holds more than named tensors.
    """
    folder, pinned_by = expanded(source), _pins_of(model) if model else {}
    if not folder.is_dir():
        pinned_by = pinned_by or pins(source)
        folder = _downloaded(source, pinned_by.get("revision"))
    target = folder / WEIGHTS_FILE
    if target.exists():
        raise DataError(f"{target}: is there already; it is left as it is")
    paths = _pickles(folder)
    size = sum(path.stat().st_size for path in paths)
    if size > MOST_BYTES:
        raise DataError(f"{folder}: {PICKLE} has {size:,} bytes, more than {MOST_BYTES:,}")
    note = _check_pin(paths, pinned_by.get("pickle_sha256"))
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        tensors |= dict(_tensors(path))
    if (total := sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())) > MOST_TIMES * size:
        raise DataError(f"{paths[0]}: its tensors come to {total:,} bytes, the file has {size:,}; it is refused")
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_atomically(target, save(copies, metadata={"format": "pt"}))
    if note:
        warn(note)
    return target


@functools.cache
def model_yamls() -> Mapping[str, Mapping[str, Any]]:
    """Every model's word -> what its own yaml says."""
    words, folder = compose.words("model"), compose.conf_dir() / "model"
    return {word: yaml.safe_load((folder / f"{word}.yaml").read_text(encoding="utf-8")) for word in words}


def pins(name: str) -> Mapping[str, Any]:
    """The yaml of the model whose weights lie in this repository of the Hub; empty: none names it."""
    return next((keys for keys in model_yamls().values() if keys.get("hub") == name), {})


def _pins_of(word: str) -> Mapping[str, Any]:
    """The yaml of a model whose pickle is pinned."""
    if word not in model_yamls():
        raise ConfigError(f"model={shown(word)}: there is no such model; {near(word, model_yamls())}")
    if not model_yamls()[word].get("pickle_sha256"):
        raise ConfigError(f"model={word}: its yaml pins no {PICKLE} (pickle_sha256)")
    return model_yamls()[word]


def _check_pin(paths: Sequence[Path], pinned: str | None) -> str | None:
    """See that weights are the one pickle that is pinned; where none is, a line says whether some model's yaml does."""
    whole = paths[0].name == PICKLE
    sha256 = file_sha256(paths[0]) if whole else ""
    if pinned and not whole:
        raise DataError(f"{paths[0].parent}: has {quantity(len(paths), 'shard')}, and what is pinned is one {PICKLE}")
    if pinned and sha256 != pinned:
        raise DataError(f"{paths[0]}: has sha256 {sha256[:16]}..., not the pinned {pinned[:16]}...; it is refused")
    if pinned:
        return None
    words = [word for word, keys in model_yamls().items() if whole and keys.get("pickle_sha256") == sha256]
    told = f"is what model={words[0]} pins" if words else "no model's yaml pins it; model=WORD asks for that one's"
    return f"{paths[0]}: {told}"


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) or ".." in name:
        raise DataError(f"{shown(name)}: no such folder, and no owner/name of the Hub")
    patterns = ["*.json", "*.txt", "*.model", "pytorch_model*.bin"]
    go_offline_unless_reachable()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, HFValidationError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise DataError(f"{name}: no such folder, and the Hub gives no such model: {type(error).__name__}") from None


def _pickles(folder: Path) -> list[Path]:
    """The folder's weights: one file, or all shards."""
    if (folder / PICKLE).is_file():
        return [folder / PICKLE]
    try:
        index = untrusted.read_json(folder / INDEX, MOST_INDEX_BYTES)
    except FileNotFoundError:
        raise DataError(f"{folder}: no {PICKLE} there, and no {INDEX}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / INDEX}: cannot be read: {error}") from None
    places = index.get("weight_map") if isinstance(index, dict) else None
    names = sorted({json.dumps(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names:
        raise DataError(f"{folder / INDEX}: names no shards")
    paths = [folder / str(json.loads(name)) for name in names]
    for path in paths:
        if not SHARD.fullmatch(path.name) or path.parent != folder or not path.is_file():
            raise DataError(f"{folder / INDEX}: {shown(path.name)} is no shard beside it")
    return paths


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of one pickle."""
    try:
        packed = zipfile.is_zipfile(path)
        if packed:
            with zipfile.ZipFile(path) as archive:
                if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                    raise ValueError("its parts are compressed, as torch never writes them")
        with warnings.catch_warnings(action="ignore"):  # about pickles that torch did not write
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except Exception as error:  # whatever a stranger's file makes the loader raise
        reason = re.sub(r"\s+", " ", str(error).partition("WeightsUnpickler error:")[2] or str(error)).strip()
        raise DataError(f"{path}: not a file of tensors alone: {shown(reason, 100)}") from None
    if not isinstance(tensors, dict) or not tensors:
        raise DataError(f"{path}: holds a {type(tensors).__name__}, not tensors by name")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or not _plain(tensor):
            raise DataError(f"{path}: {shown(name)} is a {type(tensor).__name__}, not a named tensor")
        yield name, tensor.detach()


def _plain(tensor: torch.Tensor) -> bool:
    """Whether safetensors can hold it."""
    return tensor.layout == torch.strided and not (tensor.is_complex() or tensor.is_quantized or tensor.is_meta)
