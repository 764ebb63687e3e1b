"""What a run trains: a backbone with its head, what the run starts from, and its method, in the run's precision."""

from dataclasses import dataclass
from pathlib import Path

from peftbench.backbone.model import Model, compute_precision, load_model
from peftbench.backbone.readout import Readout
from peftbench.config.spec import Attachment, ModelSpec
from peftbench.config.validate import classes_of
from peftbench.methods.base import Tuner
from peftbench.runner import deltas
from peftbench.runner.delta import Delta


@dataclass(frozen=True)
class Learner:
    """How a run makes what it trains; whatever it makes is alike.

    Attributes:
        num_labels: of the task.
        start: the delta that the run starts from; None: it starts from the weights alone.
        keeps_head: whether the head of `start` goes on; else it starts anew.
        precision: see `compute_precision`.
        seed: of what the head and the method draw.
    """

    model: ModelSpec
    num_labels: int
    readout: Readout
    attachment: Attachment
    start: Delta | None
    keeps_head: bool
    precision: str
    seed: int

    def fresh(self) -> tuple[Model, Tuner]:
        """A model as training begins with it, its method attached.

        Raises:
            DataError: as `load` and `attach`.
        """
        model = self.load()
        return model, self.attach(model)

    def load(self) -> Model:
        """The backbone with its head, from the weights alone.

        Raises:
            DataError: as `load_model`.
        """
        return load_model(self.model, self.num_labels, self.seed, self.readout)[0]

    def attach(self, model: Model) -> Tuner:
        """Attach the method to a loaded model with the delta that the run starts from.

        Raises:
            DataError: that delta does not fit.
        """
        tuner = self._attached(model)
        compute_precision(model, self.precision, [*tuner.trainables().values(), *dict(model.head()).values()])
        return tuner

    def _attached(self, model: Model) -> Tuner:
        """A delta of the same method, scope and budget is trained further; that of another is merged first."""
        if self.start is not None:
            tuner = deltas.restore(self.start, model, self.keeps_head, classes_of(self.attachment.method))
            if deltas.goes_on(self.attachment, self.start):
                return tuner
            tuner.merge()
        return deltas.attach(self.attachment, model, self.seed)

    def as_learned(self, run: Path) -> Model:
        """The model as the finished run in this folder left it, made in the order in which the run made it.

        Raises:
            DataError: the run's record, delta or weights cannot be read.
        """
        delta = deltas.delta_of(run)
        model = self.load()
        deltas.put_fresh(delta, model)
        deltas.put(delta, self.attach(model), model)
        return model
