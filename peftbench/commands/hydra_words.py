"""What of a `run` command line is for Hydra itself: its switches, its own settings, the launcher's values."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from peftbench.config import compose
from peftbench.ground.errors import ConfigError, near, shown

# Launchers that may not be installed -> the one of the plugin that they build on.
PLUGIN_OF = {"joblib": "joblib", "local": "joblib", "slurm": "submitit_slurm"}
PLUGIN_OF |= {"submitit_slurm": "submitit_slurm", "submitit_local": "submitit_local"}
SWITCHES = ("config_name", "config_path", "config_dir", "package")  # they would put another tree in the place of ours
PLACES = ("hydra.run.", "hydra.sweep.", "hydra.output_subdir", "hydra.job.chdir")  # a cell has a folder of its own
LEAST = {"timeout_min": 1, "cpus_per_task": 1, "nodes": 1, "tasks_per_node": 1}  # of launchers' values
MOST = 100_000


def check(options: Namespace, overrides: Sequence[str]) -> None:
    """Refuse what Hydra could not do, before anything runs or is written.

    Args:
        options: the switches, as Hydra's own parser reads them.
        overrides: those of Hydra's own settings.

    Raises:
        ConfigError: a switch is not for this command, a setting or word is unknown, a launcher is not installed, or a
            value of it is not possible.
    """
    if given := [name for name in SWITCHES if getattr(options, name, None) is not None]:
        names = [f"--{name.replace('_', '-')}={shown(getattr(options, name))}" for name in given]
        own = f"{compose.SEARCHPATH}[file://...]"
        raise ConfigError([f"{name}: not for this command; own yaml files: {own}" for name in names])
    if places := [item for item in overrides if item.lstrip("+~").startswith(PLACES)]:
        raise ConfigError([f"{shown(item)}: follows from the cell; outputs=... says where all lie" for item in places])
    _check_launcher(overrides)
    if any(not item.startswith(compose.SEARCHPATH) for item in overrides):
        _check_values(dict(compose.load(overrides).hydra.launcher))


def _check_launcher(overrides: Sequence[str]) -> None:
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # registers those that are installed
    known = {name.removesuffix(".yaml") for name in ConfigStore.instance().list("hydra/launcher")}
    for word in (item.partition("=")[2] for item in overrides if item.startswith("hydra/launcher=")):
        if word not in known | set(PLUGIN_OF):
            raise ConfigError(f"hydra/launcher={shown(word)}: there is none; {near(word, [*known, *PLUGIN_OF])}")
        if PLUGIN_OF.get(word, word) not in known:
            raise ConfigError(f"hydra/launcher={word}: needs a plugin of Hydra; pip install 'peftbench[launchers]'")


def _check_values(launcher: dict[str, Any]) -> None:
    problems = []
    jobs, batch = launcher.get("n_jobs"), launcher.get("batch_size")
    if jobs is not None and not (jobs == -1 or 1 <= jobs <= MOST):
        problems.append(f"hydra.launcher.n_jobs={shown(jobs)}: must be a number of processes, or -1 for all cores")
    if batch is not None and batch != "auto" and not (str(batch).isdecimal() and 1 <= int(batch) <= MOST):
        problems.append(f"hydra.launcher.batch_size={shown(batch)}: must be auto or a whole number, at least 1")
    for key, least in LEAST.items():
        if (value := launcher.get(key)) is not None and not least <= value < 2**31:
            problems.append(f"hydra.launcher.{key}={shown(value)}: must be at least {least}, and below 2^31")
    if problems:
        raise ConfigError(problems)
