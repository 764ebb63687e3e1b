"""W&B after the fact: runs that were recorded offline are sent, and a study's table and figures become one run."""

import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from peftbench.ground.errors import ConfigError
from peftbench.ground.quantity import quantity
from peftbench.report import plots, render
from peftbench.report.records import Study
from peftbench.report.table import build


def offline_runs(study: Study) -> list[Path]:
    """Folders of runs that W&B recorded offline and has not sent."""
    folders = [path for folder in study.folders for path in sorted(folder.glob("wandb/offline-run-*"))]
    return [path for path in folders if not list(path.glob("*.wandb.synced"))]


def send(runs: list[Path], mode: str) -> None:
    """Send them, as `wandb sync` does.

    Args:
        mode: how W&B is used here: online, offline or disabled.

    Raises:
        ConfigError: there is no key, or W&B could not be reached or refused them.
    """
    if not runs:
        return
    if mode != "online":
        waiting = quantity(len(runs), "run waits", "runs wait")
        raise ConfigError(f"{waiting} to be sent, and W&B has no key here; wandb login, or WANDB_API_KEY")
    _check_reachable(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    for run in runs:
        command = [sys.executable, "-P", "-m", "wandb", "sync", str(run)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise ConfigError(f"{run}: wandb sync failed: {reason[-1] if reason else 'it does not say why'}")


def _check_reachable(server: str) -> None:
    """wandb itself tries for many minutes before it gives up."""
    try:
        urllib.request.urlopen(server, timeout=10).close()
    except urllib.error.HTTPError:
        return  # it answers
    except (OSError, ValueError) as error:
        raise ConfigError(f"{server}: W&B cannot be reached ({error})") from None


def log_study(study: Study, folder: Path, project: str, mode: Any) -> str:
    """Log the study's table and figures as one W&B run; returns where it is."""
    import wandb

    table = build(study)
    head, *rows = render.grid(table)
    with tempfile.TemporaryDirectory() as made:
        figures = [path for path in plots.save_all(study, Path(made)) if path.suffix == ".png"]
        settings = wandb.Settings(console="off", disable_git=True)
        run = wandb.init(
            project=project, group=study.name, job_type="study", name=f"{study.name} table", dir=str(folder),
            mode=mode, settings=settings, config={"notes": table.notes},
        )  # fmt: skip
        run.log({"table": wandb.Table(columns=head, data=rows)})
        run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
        address = run.url or run.dir
        run.finish()
    return str(address)
