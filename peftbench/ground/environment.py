"""What the environment says of processes, threads and W&B: wrong words are refused before any cost. No torch.

`prepare` must come before torch is imported: its threads look at the environment once.
"""

import math
import os
import sys
import time
from pathlib import Path

from peftbench.ground.errors import ConfigError, shown

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun and accelerate set
WANDB_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
TRUE = ("1", "true", "yes", "on", "t", "y")
ONEDNN_KEPT = "64"  # compiled products; 1024 by default, and every width of a batch has some 20 of its own


chosen_threads: dict[str, str] = {}  # how many, by variable: what was set here, not by anybody else
_began = time.monotonic()  # when the command did (s)


def prepare() -> None:
    """Check what was set, and set how many threads compute and how they wait, unless somebody did.

    Raises:
        ConfigError: a variable has a value that is not possible.
    """
    global _began
    _began = time.monotonic()
    _check()
    os.environ.pop("WANDB_SERVICE", None)  # the process that writes for whoever started us ends with them
    _set_threads()
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait busily take what a neighbour could use
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_KEPT)


def age_s() -> float:
    """For how long (s) the command has been at work, its imports included."""
    return time.monotonic() - _began


def one_process(command: str) -> None:
    """See that a command was not started as several processes that compute together: they would take different pieces
    of work, and sum their gradients.

    Raises:
        ConfigError: it was.
    """
    if (size := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(f"{command}: is one process, not {size}; start it without torchrun or accelerate launch")


def _set_threads() -> None:
    """torch's threads, unless somebody set a number, and as many of numba's: by itself it starts one for every core."""
    ours = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(cores())}
    os.environ.update(ours)
    if "NUMBA_NUM_THREADS" not in os.environ:
        number = os.environ["OMP_NUM_THREADS"].split(",")[0].strip()
        if (numba := sys.modules.get("numba")) is not None:  # its threads may be there, and it refuses another number
            number = str(numba.config.NUMBA_NUM_THREADS)
        os.environ["NUMBA_NUM_THREADS"] = number
        if ours:
            ours["NUMBA_NUM_THREADS"] = number
    if ours:
        chosen_threads.clear()
        chosen_threads.update(ours)


def leave_threads_to_workers() -> None:
    """Let the processes of a launcher count for themselves: some share this machine's cores, some run on another."""
    for name in _still_chosen():
        del os.environ[name]
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(cores()))  # joblib looks at the outermost control group alone


def share_threads(processes: int) -> None:
    """Give each of so many processes of this machine its part of the cores, unless somebody set a number."""
    for name in _still_chosen():
        os.environ[name] = str(max(1, cores() // processes))


def _still_chosen() -> list[str]:
    """The variables that still say what was set here; none if somebody has set torch's number since."""
    kept = [name for name, number in chosen_threads.items() if os.environ.get(name) == number]
    return kept if "OMP_NUM_THREADS" in kept else []


def cores() -> int:
    """How many threads can run at a time: cores that this process may use, or its control group's quota if less."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return number if quota is None else max(1, min(number, math.ceil(quota)))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPU seconds per second that the control groups of this process allow; None: as many as there are.

    Args:
        root: where control groups are mounted, of version 2 or 1.
        own: the file that says which are this process's.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    quotas = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            base, read = root, _quota_2
        elif "cpu" in controllers.split(","):
            base, read = root / "cpu", _quota_1
        else:
            continue
        group = base / path.lstrip("/")
        groups = [group, *group.parents] if group.is_dir() else [base]  # within a container its own is the root
        quotas += [read(folder) for folder in groups if folder.is_relative_to(base)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return None


def _quota_1(group: Path) -> float | None:
    try:
        quota = float((group / "cpu.cfs_quota_us").read_text()) / float((group / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return quota if quota > 0 else None


def wandb_mode() -> str | None:
    """What W&B's own variables say: online, offline or disabled; None: nothing.

    Raises:
        ConfigError: a word that W&B never knew.
    """
    if os.environ.get("WANDB_DISABLED", "").lower() in TRUE:
        return "disabled"
    word = os.environ.get("WANDB_MODE", "")
    if word and word.lower() not in WANDB_MODES:
        raise ConfigError(f"WANDB_MODE={shown(word)}: must be one of {', '.join(WANDB_MODES)}")
    return WANDB_MODES[word.lower()] if word else None


def seconds(name: str, default: float) -> float:
    """A variable that is a number of seconds.

    Raises:
        ConfigError: it is none.
    """
    word = os.environ.get(name, "")
    try:
        value = float(word) if word else default
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={shown(word)}: must be a number of seconds above 0")
    return value


def _check() -> None:
    if sys.flags.optimize > 1:
        raise ConfigError(f"PYTHONOPTIMIZE={sys.flags.optimize}: must be 0 or 1, libraries need their documentation")
    wandb_mode()
    seconds("WANDB_INIT_TIMEOUT", 1.0)
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:  # a list is one number per level of nested parts
        for word in threads.split(","):
            _whole("OMP_NUM_THREADS", word, 1)
    if _whole("WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"), 1) > 1:
        if absent := [name for name in LAUNCHED if not os.environ.get(name)]:
            raise ConfigError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}: needs {', '.join(absent)} as torchrun sets them")
        _whole("MASTER_PORT", os.environ["MASTER_PORT"], 1)
    _check_rank("RANK")
    _check_rank("LOCAL_RANK")


def _check_rank(name: str) -> None:
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if (word := os.environ.get(name)) is not None and _whole(name, word, 0) >= size:
        raise ConfigError(f"{name}={word}: must be below WORLD_SIZE, which is {size}")


def _whole(name: str, word: str, least: int) -> int:
    if not (word.strip().isascii() and word.strip().isdigit() and len(word) < 10 and int(word) >= least):
        raise ConfigError(f"{name}={shown(word)}: must be a whole number, at least {least}")
    return int(word)
