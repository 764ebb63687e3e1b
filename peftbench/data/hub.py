"""Rows of the Hub's copy of a task, through the datasets library."""

import functools
from collections.abc import Sequence
from typing import Any

from peftbench.config.spec import DataSpec, TaskSpec
from peftbench.data.split import Split, checked_split
from peftbench.ground.errors import DataError, shown

SECONDS = 3.0  # that the Hub has for a first answer


@functools.cache
def go_offline_unless_reachable() -> None:
    """Ask the Hub once; where nobody answers, its libraries go by their caches instead of trying for half a minute."""
    import datasets.config
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # of whichever library it speaks with
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def read_hub(data: DataSpec, task: TaskSpec, split: str) -> Split:
    """Read one split. Where the Hub names the classes, a label is mapped by its name; otherwise it is a class id.

    Raises:
        DataError: the Hub cannot be reached (the line says which sources would work), a column is missing, a name
            of a class is not the task's, or as `checked_split`.
    """
    rows = _load(data, task, split)
    place = f"data=hub: {shown(data.path)} ({task.hub.config}, {task.hub.splits[split]})"
    public = split not in task.test
    for column in (*task.hub.text, *([task.hub.label] if public else [])):
        if column not in rows.column_names:
            raise DataError(f"{place} has no column '{column}', only {shown(', '.join(rows.column_names))}")
    texts = {column: list(rows[column]) for column in task.hub.text}
    labels = _labels(rows, task, place) if public else None
    return checked_split(task, split, texts, labels, task.labels or (), lambda row: f"{place}, row {row}")


def _load(data: DataSpec, task: TaskSpec, split: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries; what comes of them is said below in one line
    go_offline_unless_reachable()
    name = task.hub.splits[split]
    try:
        return load_dataset(str(data.path), task.hub.config, revision=data.revision, split=name)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"data=hub: cannot read {shown(data.path)} ({task.hub.config}, {name}): {type(error).__name__}; "
            "data=folder data.path=<the official download> and data=sample need no network"
        ) from None


def _labels(rows: Any, task: TaskSpec, place: str) -> Sequence[object]:
    """Every row's label: the name of its class where the Hub has names, or what stands there."""
    labels, feature = list(rows[task.hub.label]), rows.features[task.hub.label]
    names = getattr(feature, "names", None)
    if names is None or (_are_ids(names) and not set(names) & set(task.labels or ())):
        return labels
    if task.labels is None:
        raise DataError(f"{place}: '{task.hub.label}' holds classes, and the task is a regression")
    if unknown := [name for name in names if name not in task.labels]:
        allowed = shown(", ".join(task.labels))
        raise DataError(f"{place}: names a class '{shown(unknown[0])}', task.labels are {allowed}")
    return [names[label] if label in range(len(names)) else label for label in labels]


def _are_ids(names: Sequence[str]) -> bool:
    """Whether these are the names that datasets makes up where only the number of classes is known."""
    return list(names) == [str(i) for i in range(len(names))]
