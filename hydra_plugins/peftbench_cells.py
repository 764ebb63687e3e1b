"""Hydra's sweeper of this project; Hydra finds it by the name of this folder, which is all that is here."""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class CellSweeper(Sweeper):
    """Hands the cells that are left to run to the launcher, whichever that is."""

    def __init__(self, params: Any = None) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra's `Sweeper`."""
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run what the `run` command found left before Hydra started; whatever a job raised is raised here."""
        from peftbench.study.sweep import left

        return [job.return_value for job in self.launcher.launch(left, initial_job_idx=0)]
