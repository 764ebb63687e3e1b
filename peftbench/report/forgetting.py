"""What backbones lost: the probes that `peftbench forgetting` kept beside the records of a study."""

from peftbench.ground import forgotten
from peftbench.ground.errors import LONGEST_LINE, ConfigError, DataError, short_line, warn
from peftbench.ground.forgotten import Forgetting
from peftbench.report import axes
from peftbench.report.axes import Measure, Measured, Place
from peftbench.report.records import Study
from peftbench.report.sheet import Sheet

# Of each probe what is shown: before, after and their difference.
SIMILARITY = tuple(Measure(f"similarity {part}", times=100) for part in ("before", "after", "change"))
MASKED = tuple(Measure(f"masked loss {part}", 3) for part in ("before", "after", "change"))
BY_PROBE = {"similarity": SIMILARITY, "masked_lm": MASKED}


def sheet(study: Study) -> Sheet:
    """Both probes of every cell of the study's table, as far as they were measured.

    Raises:
        ConfigError: nothing was.
    """
    cells = [_measured(place) for place in axes.places(study)]
    if not any(one.runs for one in cells):
        raise ConfigError(f"study {study.name}: nothing was measured; peftbench forgetting {study.name}")
    without = [f"{one.place.row} on {one.place.column}" for one in cells if not one.runs]
    notes = [
        "similarity: Spearman's correlation of cosines and scores of STS-B's dev pairs, times 100; more is better",
        "masked loss: cross entropy of masked tokens in nats, by the head of the weights; less is better",
        *([f"not measured since the last run: {', '.join(without)}"] if without else []),
    ]
    title = f"{study.name}: what backbones lost, mean ± sd over runs"
    return axes.sheet(title, [*SIMILARITY, *MASKED], [one for one in cells if one.runs], notes)


def _measured(place: Place) -> Measured:
    """The probes of a cell's runs; what was measured of an earlier run of the same cell does not count."""
    values: dict[str, list[float]] = {measure.name: [] for measure in (*SIMILARITY, *MASKED)}
    runs = 0
    for folder, record in place.runs:
        try:
            own = [one for one in forgotten.read(folder) if one.delta == record.hashes.delta]
        except DataError as error:
            warn(f"left out: {short_line(error.every[0], LONGEST_LINE - 10)}")
            continue
        runs += bool(own)
        for one in own:
            for measure, value in zip(BY_PROBE[one.probe], _figures(one), strict=True):
                values[measure.name].append(value)
    return Measured(place, values, runs)


def _figures(one: Forgetting) -> tuple[float, float, float]:
    return one.before, one.after, one.after - one.before
