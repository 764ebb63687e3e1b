"""How far what artefacts are made of lies apart: lengths and cosines of changes, and how far a backbone has moved."""

from dataclasses import dataclass, field, replace
from functools import cache
from statistics import mean

from pydantic import TypeAdapter, ValidationError

from peftbench.ground.errors import ConfigError
from peftbench.ground.record_parts import Name, Number
from peftbench.record import Record
from peftbench.report import axes
from peftbench.report.axes import Measure, Measured
from peftbench.report.records import Study
from peftbench.report.sheet import Sheet

By = dict[Name, Number]  # by task, by two tasks, or by kind of module


@dataclass(frozen=True)
class Merged:
    """Of several runs' changes: lengths by task; by two tasks their cosine, and how often their signs agree.

    Attributes:
        keep: the share of entries that was chosen, where one was.
        tried: every setting ("0.5", "0.5, keep 0.2"), where one was chosen.
    """

    norms: By
    cosines: By
    sign_agreement: By
    scale: Number
    keep: Number | None = None
    tried: dict[str, By] = field(default_factory=dict)

    @property
    def edge(self) -> str | None:
        """Where no scale beyond the chosen one was tried: the largest, or the smallest."""
        scales = sorted({float(setting.partition(",")[0]) for setting in self.tried})
        if len(scales) < 2 or self.scale not in (scales[0], scales[-1]):
            return None
        return "largest" if self.scale == scales[-1] else "smallest"


@dataclass(frozen=True)
class _Change:
    length: Number
    cosine: Number
    cosines: By | None = None


@dataclass(frozen=True)
class _Residual:
    in_changes: Number


@dataclass(frozen=True)
class _Ported:
    """Of a port: how far the backbone has moved, the old one's length, the run's change, and its scale where one was
    chosen."""

    distance: Number
    length: Number
    change: _Change | None = None
    scale: Number | None = None


@dataclass(frozen=True)
class _Anew:
    """Of a change trained anew: its cosine with the old one, and how far the two lie apart in its own lengths."""

    change: _Change
    cosines: By
    residual: _Residual
    residual_in_changes: By


Read = Merged | _Ported | _Anew
MEASURES = (
    Measure("scale", decimals=2),
    Measure("keep", decimals=2),
    Measure("moved", decimals=2, times=100),
    Measure("length", decimals=3),
    Measure("cosine", decimals=3),
    Measure("equal signs", times=100),
    Measure("apart", decimals=2),
)
NOTES = (
    "scale: times the change; keep: the share of entries kept, where it was chosen on held-out rows",
    "length: of a run's change of the backbone; of a merge the mean over its runs",
    "cosine: of a merge between the changes of two runs, mean over pairs; of a port between the run's change and the "
    "backbone's move; of a run trained anew between its change and the old run's",
    "equal signs: in percent of the entries that two runs of a merge changed; moved: in percent of the old length",
    "apart: length of the difference of new and old change in lengths of the new one (1.4: nothing in common)",
    "by kind of module: --format csv",
)


@cache
def _adapter(kind: type) -> TypeAdapter[Read]:
    return TypeAdapter(kind)


def read_of(record: Record) -> Read | None:
    """What a record says of distances; None: nothing, or not as this version writes it."""
    if record.made is None:
        return None
    kinds = {"merge": (Merged,), "port": (_Ported, _Anew)}
    for kind in kinds.get(record.made.by, ()):
        try:
            return _adapter(kind).validate_python(record.made.facts)
        except ValidationError:
            continue
    return None


def _measures(read: Read) -> dict[str, float]:
    """The measures of one artefact, and those by kind of module."""
    if isinstance(read, Merged):
        values = {"length": read.norms, "cosine": read.cosines, "equal signs": read.sign_agreement}
        return {
            **_chosen(scale=read.scale, keep=read.keep),
            **{name: mean(one.values()) for name, one in values.items() if one},
        }
    if isinstance(read, _Ported):
        moved = _chosen(scale=read.scale) | ({"moved": read.distance / read.length} if read.length else {})
        return moved if read.change is None else {**moved, **_of_change(read.change, read.change.cosines or {})}
    apart = {"apart": read.residual.in_changes}
    apart |= {f"apart, {kind}": value for kind, value in read.residual_in_changes.items()}
    return {**_of_change(read.change, read.cosines), **apart}


def _chosen(**settings: float | None) -> dict[str, float]:
    return {name: value for name, value in settings.items() if value is not None}


def _of_change(change: _Change, by_kind: By) -> dict[str, float]:
    by_kind = {f"cosine, {kind}": value for kind, value in by_kind.items()}
    return {"length": change.length, "cosine": change.cosine, **by_kind}


def sheet(study: Study) -> Sheet:
    """The distances of a study's merges and ports, row by row of its table.

    Raises:
        ConfigError: there are none.
    """
    cells = []
    for place in axes.places(study):
        every = [_measures(read) for _, record in place.runs if (read := read_of(record)) is not None]
        if every:
            names = dict.fromkeys(name for one in every for name in one)
            values = {name: [one[name] for one in every if name in one] for name in names}
            cells.append(Measured(place, values, len(every)))
    if not cells:
        raise ConfigError(f"study {study.name}: holds no merge and no port; peftbench merge and port make them")
    by_kind = dict.fromkeys(name for one in cells for name in one.values if ", " in name)
    title = f"{study.name}: lengths and cosines of changes, mean ± sd over runs"
    shown = axes.sheet(title, MEASURES, cells, NOTES)
    return replace(shown, numbers=axes.sheet("", [*MEASURES, *map(Measure, by_kind)], cells, ()).numbers)
