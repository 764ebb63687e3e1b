"""With what a run was made: versions, source, hardware, and how much memory it took."""

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from peftbench.ground.machine import give_back_freed_memory, process_state
from peftbench.ground.version import __version__

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "tokenizers",
    "numba",
    "numpy",
    "scipy",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a score may depend on."""
    packages = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "peftbench": __version__, **packages}


@functools.cache
def _version(package: str) -> str:
    return metadata.version(package)


def git() -> dict[str, Any]:
    """Commit of the source and whether it was changed since; nulls where the package is not run from a checkout.

    As they were when this process first asked: it goes on with what it has imported.
    """
    commit, dirty = _checkout()
    return {"commit": commit, "dirty": dirty}


@functools.cache
def _checkout() -> tuple[str | None, bool | None]:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, None

    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    status = ask("status", "--porcelain")
    return ask("rev-parse", "HEAD"), None if status is None else bool(status)


def hardware() -> dict[str, Any]:
    """What the run was computed on."""
    state = process_state()
    cuda = state.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(state.device) if cuda else "cpu",
        "processes": state.num_processes,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def reset_peak_memory() -> None:
    """Forget the memory peak of earlier runs in this process (Linux; elsewhere the peak is the process's own)."""
    give_back_freed_memory()
    device = process_state().device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory_mb() -> float:
    """Peak since the reset, in MiB: of the GPU where there is one, else resident memory of this process."""
    device = process_state().device
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return round(int(peak.split()[1]) / 1024, 1)
    except (OSError, StopIteration):
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
