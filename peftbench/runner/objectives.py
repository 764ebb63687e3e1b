"""An update's objective: the runs that teach it answer every row of train once, before training begins."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from peftbench.backbone.model import compute_precision
from peftbench.config.objective import ObjectiveSpec
from peftbench.config.spec import Protocol, Task
from peftbench.data.tokens import Tokens
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import RECORD_FILE
from peftbench.ground.machine import process_state
from peftbench.record import read_record
from peftbench.runner import deltas
from peftbench.training.evaluation import Evaluator
from peftbench.training.forward import Forward
from peftbench.training.muscle import Muscle


def check(runs: Mapping[str, tuple[Path, str]], max_length: int) -> None:
    """See that the runs that an update is made of can teach it.

    Args:
        runs: see `parents_of_update`.
        max_length: tokens of a row at most.

    Raises:
        ConfigError: a run's backbone has too few positions for such rows.
    """
    for key, (folder, _) in runs.items():
        model = deltas.model_spec(read_record(folder / RECORD_FILE))
        if max_length > model.positions:
            there = f"the backbone of {key} has {model.positions} positions"
            raise ConfigError(f"protocol.max_length={max_length}: {there}")


@dataclass(frozen=True)
class Teaching:
    """How runs answer every row of train once, before training begins.

    Attributes:
        rows: those that will train.
        protocol: its precision and evaluation batch size are those of the answers.
        known: classes outside this package that a run's delta may name.
        check: called between batches; may raise to leave.
    """

    rows: Tokens
    task: Task
    protocol: Protocol
    known: Collection[str]
    check: Callable[[], None] = lambda: None

    def answers(self, run: Path) -> torch.Tensor:
        """A run's logits of every row (rows, classes) fp32, without dropout.

        Its model is let go before anything else is loaded.

        Raises:
            DataError: the run cannot be read.
        """
        model, tuner, _ = deltas.reload(run, self.known)
        precision = self.protocol.precision
        compute_precision(model, precision, [*tuner.trainables().values(), *dict(model.head()).values()])
        forward = Forward(model, precision, process_state().device)
        evaluator = Evaluator(forward, self.task, self.protocol.eval_batch_size, self.check)
        return torch.from_numpy(evaluator.predict(self.rows))


def muscle(asked: ObjectiveSpec, new: Path, teaching: Teaching) -> Muscle:
    """What keeps an update compatible with an older run.

    Args:
        new: folder of the newer run, from which training starts.

    Raises:
        DataError: a teacher cannot be read.
    """
    nobody = torch.empty(0, teaching.task.num_labels)
    old = teaching.answers(Path(str(asked.old))) if asked.asks_old else nobody
    taught_by_new = teaching.answers(new) if asked.asks_new else nobody
    return Muscle(asked.teacher, asked.temperature, asked.mix, old, taught_by_new)
