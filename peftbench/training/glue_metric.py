"""GLUE's metrics as an `evaluate.Metric` that needs no network (`evaluate.load("glue")` does)."""

import datasets
import evaluate
import numpy as np

from peftbench.training.metrics import score

# The configurations of GLUE's own metric (huggingface/evaluate, metrics/glue), and AX. A new task has no place here:
# its yaml names its metrics, and `metrics.py` computes them.
NAMES = {
    "cola": ("matthews_correlation",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "sst2": ("accuracy",),
    "mnli": ("accuracy",),
    "mnli_mismatched": ("accuracy",),
    "mnli_matched": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
    "ax": ("matthews_correlation",),
}


class Glue(evaluate.Metric):
    """`Glue(config_name="mrpc").compute(predictions=..., references=...)`, with the runner's own arithmetic.

    Raises:
        KeyError: `config_name` is not a GLUE task.
    """

    def _info(self) -> evaluate.MetricInfo:
        names = NAMES[self.config_name]
        kind = "float32" if "pearson" in names else "int64"
        return evaluate.MetricInfo(
            description="GLUE metrics (Wang et al. 2019), computed without network",
            citation="Wang et al. 2019, GLUE: A Multi-Task Benchmark, arXiv 1804.07461",
            inputs_description="predictions and references: class ids, or scores for stsb",
            features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return score(NAMES[self.config_name], np.asarray(predictions), np.asarray(references)).values
