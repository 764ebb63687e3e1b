"""Metrics against scikit-learn and scipy, edge cases, and the `evaluate.Metric` that gives the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from peftbench.config import compose
from peftbench.training.glue_metric import NAMES, Glue
from peftbench.training.metrics import METRICS, predict, score, standard_error

binary = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=60)
ternary = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=60)
numbers = st.lists(st.tuples(st.floats(-5, 5, width=16), st.floats(0, 5, width=16)), min_size=3, max_size=60)


@given(binary)
def test_classification(pairs: list[tuple[int, int]]) -> None:
    predictions, references = np.array(pairs).T
    scores = score(["accuracy", "f1", "matthews_correlation"], predictions, references)
    assert scores.values == {
        "accuracy": accuracy_score(references, predictions),
        "f1": f1_score(references, predictions, zero_division=0),
        "matthews_correlation": matthews_corrcoef(references, predictions),
    }
    assert scores.collapsed == (len(set(predictions.tolist())) == 1)
    if scores.collapsed:
        assert scores.values["matthews_correlation"] == 0


@given(ternary)
def test_three_classes(pairs: list[tuple[int, int]]) -> None:
    predictions, references = np.array(pairs).T
    assert score(["accuracy", "matthews_correlation"], predictions, references).values == {
        "accuracy": accuracy_score(references, predictions),
        "matthews_correlation": matthews_corrcoef(references, predictions),
    }


@given(numbers)
def test_regression(pairs: list[tuple[float, float]]) -> None:
    predictions, references = np.array(pairs, dtype=np.float64).T
    values = score(["pearson", "spearman"], predictions, references).values
    for name, function in (("pearson", pearsonr), ("spearman", spearmanr)):
        with np.errstate(all="ignore"):
            expected = float(function(predictions, references)[0])
        assert values[name] == (0.0 if np.isnan(expected) else expected)


def test_constant_predictions_are_zero_and_collapsed() -> None:
    for constant in (np.full(5, 2.5), np.zeros(5)):
        scores = score(["pearson", "spearman"], constant, np.arange(5.0))
        assert scores.values == {"pearson": 0.0, "spearman": 0.0}
        assert scores.collapsed
    three = score(["matthews_correlation"], np.ones(6, int), np.array([0, 1, 2, 0, 1, 2]))
    assert three.values["matthews_correlation"] == 0
    assert three.collapsed


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 predictions for 2 rows"):
        score(["accuracy"], np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="0 predictions"):
        score(["accuracy"], np.zeros(0), np.zeros(0))


def test_predictions_of_logits() -> None:
    assert predict(np.array([[0.1, 0.9, 0.0], [2, 1, 0]])).tolist() == [1, 0]
    assert predict(np.array([[3.5], [-1]])).tolist() == [3.5, -1]


def test_standard_error_is_that_of_a_proportion() -> None:
    references = np.ones(400, int)
    predictions = (np.arange(400) % 5 > 0).astype(int)  # accuracy 0.8
    error = standard_error("accuracy", predictions, references, resamples=2000)
    assert error == pytest.approx(np.sqrt(0.8 * 0.2 / 400), rel=0.1)


@pytest.mark.parametrize("task", NAMES)
def test_evaluate_metric_gives_the_same_without_network(task: str) -> None:
    random = np.random.default_rng(0)
    if task == "stsb":
        predictions, references = random.normal(size=50), random.uniform(0, 5, 50)
    else:
        predictions, references = random.integers(0, 2, 50), random.integers(0, 2, 50)
    computed = Glue(config_name=task).compute(predictions=predictions, references=references)
    assert computed.keys() == set(NAMES[task])
    for name, value in computed.items():
        assert value == pytest.approx(METRICS[name](predictions, references), abs=1e-6)


def test_every_task_of_glue_has_glues_metrics() -> None:
    """A task that GLUE's own metric does not know has the metrics that its yaml names."""
    tasks = set(compose.words("task")) & set(NAMES)
    assert len(tasks) == 11
    for task in tasks - {"ax"}:  # without training rows: no cell of its own
        metrics = compose.cell_from([f"task={task}"]).task.metrics
        assert metrics[: len(NAMES[task])] == NAMES[task]
