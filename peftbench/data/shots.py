"""The rows of train that have labels where few have: drawn once per split, the same on every machine. No torch."""

from collections.abc import Sequence

import numpy as np

from peftbench.config.few_labels import Shots
from peftbench.data.split import Split
from peftbench.ground.errors import ConfigError
from peftbench.ground.quantity import quantity
from peftbench.ground.seeds import stream


def draw(train: Split, classes: Sequence[str] | None, shots: Shots) -> dict[str, Split]:
    """The labelled rows as "train", as many more as "held_out" where asked for, and the rest as "unlabelled".

    The rest has no labels: what stood there is not kept. With more shots of a split come more rows to the same ones.

    Args:
        train: every row with its label.
        classes: their names; None: a regression.

    Raises:
        ConfigError: there are not enough rows, or a class is not among those drawn.
    """
    assert train.labels is not None
    order = np.random.default_rng(stream(shots.split, "shots")).permutation(len(train))
    wanted, key = (shots.per_class, "per_class") if shots.per_class is not None else (shots.total, "total")
    assert wanted is not None
    name, sets = f"shots.{key}={wanted}", 2 if shots.dev == "same" else 1
    if wanted * sets > len(train):
        raise ConfigError(f"{name}: {_times(sets)}more than the {quantity(len(train), 'row')} of train")
    if key == "total" and not shots.stratified:
        parts = [order[i * wanted : (i + 1) * wanted] for i in range(sets)]
    else:
        of_class = [order[train.labels[order] == i] for i in range(len(classes or ()))]
        sizes = [wanted] * len(of_class) if key == "per_class" else shares(wanted, [len(rows) for rows in of_class])
        for rows, size, label in zip(of_class, sizes, classes or (), strict=True):
            if size * sets > len(rows):
                raise ConfigError(
                    f"{name}: {_times(sets)}{quantity(size, 'row')} of class {label}, and train has {len(rows)}"
                )
        pairs = list(zip(of_class, sizes, strict=True))
        parts = [np.concatenate([rows[i * size : (i + 1) * size] for rows, size in pairs]) for i in range(sets)]
    for label in (label for i, label in enumerate(classes or ()) if i not in train.labels[parts[0]]):
        raise ConfigError(f"{name}: split {shots.split} has no row of class {label}; give shots.stratified=true")
    rest = order[~np.isin(order, np.concatenate(parts))]
    drawn = {split: train.rows(np.sort(rows), split) for split, rows in zip(("train", "held_out"), parts, strict=False)}
    return {**drawn, "unlabelled": train.rows(np.sort(rest), "unlabelled").without_labels()}


def shares(wanted: int, sizes: Sequence[float]) -> list[int]:
    """So many in proportion to the sizes, by largest remainders, at least one of each."""
    exact = [wanted * size / sum(sizes) for size in sizes]
    whole = [max(1, int(share)) for share in exact]
    while (left := wanted - sum(whole)) != 0:
        step = 1 if left > 0 else -1
        movable = [i for i in range(len(sizes)) if step > 0 or whole[i] > 1]
        whole[max(movable, key=lambda i: (step * (exact[i] - whole[i]), -i))] += step
    return whole


def _times(sets: int) -> str:
    return "twice (shots.dev=same) " if sets == 2 else ""
