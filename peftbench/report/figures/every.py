"""The list of figures. Another one is a function from a study's `Material` to `Figure`s, and its name here."""

from collections.abc import Callable, Iterator

from peftbench.report.figures import edits, few, made, scores, sequences, together, training
from peftbench.report.figures.parts import Figure, Material

FIGURES: list[Callable[[Material], Iterator[Figure]]] = [
    scores.costs,
    scores.seeds,
    together.profiles,
    together.aggregates,
    training.curves,
    scores.budgets,
    few.shots,
    training.rates,
    training.growth,
    training.chosen,
    sequences.stages,
    sequences.forgotten,
    made.artefacts,
    made.steps,
    edits.curves,
]


def figures(material: Material) -> Iterator[Figure]:
    """Every figure that the study has the records for."""
    if material.rows.empty:
        return
    for function in FIGURES:
        yield from function(material)
