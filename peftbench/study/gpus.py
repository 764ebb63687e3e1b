"""GPUs shared out over the runners of one machine: each takes a place on one and keeps it. No torch."""

import fcntl
import getpass
import os
import subprocess
import tempfile
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import IO

from peftbench.ground.errors import ConfigError

_held: list[IO[str]] = []  # the place's lock file: the kernel frees it when the process ends, however it ends


def take_place(cells_per_gpu: int) -> None:
    """Bind this process to one GPU, if there are several, before torch looks for them.

    Nothing happens without GPUs, when the place was taken before, and where several processes compute one cell.

    Raises:
        ConfigError: every place is taken: there are more runners than GPUs times `cells_per_gpu`.
    """
    if _held or int(os.environ.get("WORLD_SIZE", "1")) > 1 or not (gpus := visible()):
        return
    for place in range(cells_per_gpu):
        for gpu in gpus:
            if (file := _lock(f"{gpu}-{place}")) is not None:
                _held.append(file)
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                return
    raise ConfigError(
        f"cells_per_gpu={cells_per_gpu}: {len(gpus)} GPUs have no place left for another runner; "
        "raise it, or start fewer (hydra.launcher.n_jobs)"
    )


@cache
def visible() -> list[str]:
    """Identifiers of the GPUs that this process may use, in nvidia-smi's order."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    uuids = dict(line.replace(" ", "").split(",", 1) for line in lines if "," in line)
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return list(uuids.values())
    words = (word.strip() for word in allowed.split(","))
    known = takewhile(lambda word: word in uuids or word.startswith(("GPU-", "MIG-")), words)  # CUDA stops there, too
    return [uuids.get(word, word) for word in known]


def _lock(name: str) -> IO[str] | None:
    folder = Path(tempfile.gettempdir()) / f"peftbench-gpus-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = (folder / name).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
