"""Deltas and records that a stranger made: one line and exit code 3, nothing imported, nothing written, bounded."""

import json
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from forgery import MOST_MB, PLACES, peak_mb
from safetensors import safe_open
from safetensors.torch import save
from support import TINY

from peftbench.cli import main
from peftbench.data.sources import SAMPLE
from peftbench.ground.files import DELTA_FILE, RECORD_FILE
from peftbench.runner.delta import FORMAT

DEV = SAMPLE / "SST-2" / "dev.tsv"
Tensors = dict[str, torch.Tensor]
Forge = Callable[[Tensors, dict[str, Any]], bytes]


def made(tensors: Tensors, facts: Any) -> bytes:
    return save(tensors, {FORMAT: facts if isinstance(facts, str) else json.dumps(facts)})


def fact(*steps: str, value: Any) -> Forge:
    """Another value at a place of the facts."""

    def forge(tensors: Tensors, facts: dict[str, Any]) -> bytes:
        inner = facts
        for step in steps[:-1]:
            inner = inner[step]
        inner[steps[-1]] = value
        return made(tensors, facts)

    return forge


def without(key: str) -> Forge:
    return lambda tensors, facts: made(tensors, {name: value for name, value in facts.items() if name != key})


def target(name: str) -> Forge:
    return fact("method", "target", value=name)


def first(tensors: Tensors, change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    name = min(tensors)
    return {**tensors, name: change(tensors[name]).contiguous()}


DELTAS: dict[str, Forge] = {
    **{f"target {name}": target(name) for name in (
        "lure.Method", "lure", "lure.within.Method", "unittest.__main__.X", "venv.__main__.X", "os.system", "", ".",
        "builtins.eval", "peftbench.nope.X", "peftbench.cli.main", "peftbench.methods.lora", "torch.nn.Linear",
        "antigravity.X", "this.X", "..x", "peftbench.methods.lora.LoRA.attach",
    )},
    **{f"without {key}": without(key) for key in ("method", "scope", "budget", "model", "task", "seed", "fingerprint")},
    "no facts": lambda tensors, facts: save(tensors),
    "no JSON": lambda tensors, facts: made(tensors, "{"),
    "list": lambda tensors, facts: made(tensors, "[]"),
    "deep": lambda tensors, facts: made(tensors, "[" * 100_000),
    "deep keys": lambda tensors, facts: made(tensors, '{"a":' * 100_000),
    "labels": fact("task", "labels", value=10**9),
    "no labels": fact("task", "labels", value=0),
    "seed": fact("seed", value=-1),
    "huge seed": fact("seed", value=10**30),
    "seed is a word": fact("seed", value="0"),
    "budget": fact("budget", value={"entries": 10**18}),
    "scope": fact("scope", "layers", value=[10**9]),
    "other model": fact("model", "name", value="bert_base_cased"),
    "other weights": fact("model", "sha256", value="0" * 64),
    "rank": fact("method", "arguments", "rank", value=10**9),
    "large rank": fact("method", "arguments", "rank", value=10**6),
    "unknown argument": fact("method", "arguments", "hook", value="os.system"),
    "start": fact("start", value={"method": {"target": "lure.Method"}}),
    "not finite": lambda tensors, facts: made(first(tensors, lambda t: t * float("nan")), facts),
    "shape": lambda tensors, facts: made(first(tensors, lambda t: torch.zeros(3, 5, 7)), facts),
    "no tensors": lambda tensors, facts: made({}, facts),
    "empty": lambda tensors, facts: b"",
    "cut": lambda tensors, facts: made(tensors, facts)[:-100],
    "huge head": lambda tensors, facts: (1 << 60).to_bytes(8, "little") + b"{}",
    "pickle": lambda tensors, facts: b"\x80\x04cposix\nsystem\n.",
}  # fmt: skip


def forged(
    finished: Path, folder: Path, forge: Forge | None, config: Callable[[dict[str, Any]], object] = lambda raw: None
) -> None:
    """Make a run's folder with a forged delta (None: the good one), and a record that is signed for it."""
    folder.mkdir()
    content = (finished / DELTA_FILE).read_bytes()
    if forge is not None:
        with safe_open(finished / DELTA_FILE, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            content = forge(tensors, json.loads(file.metadata()[FORMAT]))
    (folder / DELTA_FILE).write_bytes(content)
    raw = json.loads((finished / RECORD_FILE).read_bytes())
    del raw["sha256"]
    raw["hashes"]["delta"] = sha256(content).hexdigest()
    config(raw["config"])
    raw["sha256"] = sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    (folder / RECORD_FILE).write_text(json.dumps(raw))


@pytest.fixture
def refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Use a forged delta or configuration, beside a module that leaves a trace when it is imported."""

    def call(
        forge: Forge | None,
        config: Callable[[dict[str, Any]], object] = lambda raw: None,
        words: Sequence[str] = ("predict", "run", str(DEV)),
    ) -> str:
        (tmp_path / "lure").mkdir()
        trace = f"open({str(tmp_path / 'trace')!r}, 'w')\n"
        for name in ("__init__", "within"):
            (tmp_path / "lure" / f"{name}.py").write_text(trace)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.chdir(tmp_path)
        forged(finished, tmp_path / "run", forge, config)
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["peftbench", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert "lure" not in sys.modules
        assert not (tmp_path / "trace").exists()
        assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "cache" not in path.parts] == []
        assert "Traceback" not in err
        # one line; of weights that cannot be had a second one says what works
        assert (ended.value.code, out, len(err.splitlines())) in [(3, "", 1), (3, "", 2)], err
        assert max(map(len, err.splitlines())) <= 200
        return err

    return call


@pytest.mark.parametrize("kind", DELTAS)
def test_a_forged_delta_is_refused_in_a_line(refused: Callable[..., str], kind: str) -> None:
    refused(DELTAS[kind])


USES = {
    "init_from": ["run", *TINY, "method=lora", "init_from=run"],
    "init_from of another method": ["run", *TINY, "method=bitfit", "init_from=run"],
    "apply": ["apply", "run", "--output", "made"],
    "export": ["export", "run", "--to", "made"],
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", ["target lure.Method", "without budget", "other weights", "rank", "not finite", "cut"])
def test_no_use_of_a_forged_delta_leaves_anything(refused: Callable[..., str], use: str, kind: str) -> None:
    refused(DELTAS[kind], words=USES[use])


@pytest.mark.parametrize("package", ["lure.within/weights", "lure/weights", "unittest.__main__/x", "/etc", "..", ""])
def test_a_package_that_a_record_names_is_looked_for_and_not_imported(
    refused: Callable[..., str], package: str
) -> None:
    said = refused(None, lambda raw: raw["model"].update(weights="package", package=package))
    assert "package" in said or "config.json" in said or "model.safetensors" in said


def test_the_worst_deltas_take_no_memory(finished: Path, tmp_path: Path) -> None:
    names = [name for name in DELTAS if not name.startswith(("target", "without"))]
    for name in names:
        forged(finished, tmp_path / name, DELTAS[name])
    for name, put in PLACES.items():
        forged(finished, tmp_path / name, None)
        (tmp_path / name / DELTA_FILE).unlink()
        put(tmp_path / name / DELTA_FILE)
    runs = [*names, *PLACES]
    lines = [[*words] for run in runs for words in (["apply", run, "--output", "made"], ["predict", run, str(DEV)])]
    peak, out, err = peak_mb(lines, tmp_path)
    assert peak < MOST_MB
    assert (out.strip(), err.count("\n") >= len(lines)) == ("", True), "each is refused"
    assert not (tmp_path / "made").exists()
