"""Weights that exist only as a pickle, made into model.safetensors once. The only place that reads a pickle.

torch's restricted loader makes tensors and plain containers and calls nothing else that a pickle names.
"""

import functools
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from peftbench.backbone.weights import WEIGHTS_FILE, file_sha256
from peftbench.config import compose
from peftbench.data.hub import go_offline_unless_reachable
from peftbench.ground import strangers
from peftbench.ground.errors import DataError, shown
from peftbench.ground.files import expanded, write_atomically

PICKLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
SHARD = re.compile(r"pytorch_model-\d{5}-of-\d{5}\.bin")
MOST_BYTES = 8 << 30  # of a pickle, and of all shards together
MOST_TIMES = 4  # what the tensors may come to, in sizes of the pickles: each name is written whole, shared or not
MOST_INDEX_BYTES = 16 << 20


def convert(source: str) -> Path:
    """Write model.safetensors beside the pickle in a folder, or in the Hub's cache for an `owner/name` there.

    Raises:
        DataError: there is no pickle, it is not the one that a model's yaml pins, or holds more than named tensors.
    """
    folder, pinned = expanded(source), None
    if not folder.is_dir():
        known = _pins(source)
        folder, pinned = _downloaded(source, known.get("revision")), known.get("pickle_sha256")
    target = folder / WEIGHTS_FILE
    if target.exists():
        raise DataError(f"{target}: is there already; it is left as it is")
    whole, paths = _pickles(folder)
    if pinned and whole and (sha256 := file_sha256(paths[0])) != pinned:
        raise DataError(f"{paths[0]}: has sha256 {sha256[:16]}..., not the pinned {pinned[:16]}...; it is refused")
    size = sum(path.stat().st_size for path in paths)
    if size > MOST_BYTES:
        raise DataError(f"{folder}: {PICKLE} has {size:,} bytes, more than {MOST_BYTES:,}")
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        tensors |= dict(_tensors(path))
    if (total := sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())) > MOST_TIMES * size:
        raise DataError(f"{paths[0]}: its tensors come to {total:,} bytes, the file has {size:,}; it is refused")
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_atomically(target, save(copies, metadata={"format": "pt"}))
    return target


@functools.cache
def _pins(name: str) -> Mapping[str, Any]:
    """The yaml of the model whose weights lie in this repository of the Hub; empty: none names it."""
    for path in sorted((compose.conf_dir() / "model").glob("*.yaml")):
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
        if keys.get("hub") == name:
            return dict(keys)
    return {}


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or ".." in name:
        raise DataError(f"{shown(name)}: no such folder, and no owner/name of the Hub")
    patterns = ["*.json", "*.txt", "*.model", "pytorch_model*.bin"]
    go_offline_unless_reachable()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise DataError(f"{name}: no such folder, and the Hub gives no such model: {type(error).__name__}") from None


def _pickles(folder: Path) -> tuple[bool, list[Path]]:
    """Whether the folder's weights are one file, and the files."""
    if (folder / PICKLE).is_file():
        return True, [folder / PICKLE]
    try:
        index = strangers.read_json(folder / INDEX, MOST_INDEX_BYTES)
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
    return False, paths


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of one pickle."""
    try:
        packed = zipfile.is_zipfile(path)
        if packed:
            with zipfile.ZipFile(path) as archive:
                if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                    raise ValueError("its parts are compressed, as torch never writes them")
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
