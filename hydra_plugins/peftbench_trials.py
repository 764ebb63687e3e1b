"""Hydra's sweeper that asks Optuna; Hydra finds it by the name of this folder, which is all that is here."""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TrialSweeper(Sweeper):
    """Hands the cells that Optuna proposes to the launcher, whichever that is."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings  # the `run` command has read them before Hydra started

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra's `Sweeper`."""
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search that the `run` command has prepared; whatever a job raised is raised here."""
        from peftbench.study import trials

        trials.current.run(self._launched)

    def _launched(self, cells: list[list[str]]) -> list[int]:
        from peftbench.study.sweep import left
        from peftbench.training import stopping

        left[:] = cells
        codes = [job.return_value for job in self.launcher.launch(left, initial_job_idx=0)]
        stopping.check()  # a signal ends workers one by one, and leaves it to us to go
        return codes
