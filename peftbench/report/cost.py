"""What a study cost: core hours, GPU hours where there were GPUs, and on how many workers."""

from collections.abc import Callable, Sequence

from peftbench.ground.quantity import quantity
from peftbench.record import Record
from peftbench.report import axes
from peftbench.report.axes import Measure, Measured
from peftbench.report.records import Study
from peftbench.report.sheet import Sheet

HOUR = 3600  # seconds

# What is shown and how a record gives it; None: it does not say.
COSTS: dict[Measure, Callable[[Record], float | None]] = {
    Measure("backbone", 0, counted=True): lambda record: None if record.counts is None else record.counts.backbone,
    Measure("kept", 0, counted=True): lambda record: None if record.counts is None else record.counts.kept,
    Measure("head", 0, counted=True): lambda record: None if record.counts is None else record.counts.head,
    Measure("stored bytes", 0, counted=True): lambda record: (
        None if record.counts is None else record.counts.stored_bytes
    ),
    Measure("ms per step", 0): lambda record: _step(record),
    Measure("tokens / s", 0): lambda record: None if record.throughput is None else record.throughput.tokens_per_s,
    Measure("s of training", 0): lambda record: record.time.train_s,
    Measure("s of search", 0): lambda record: 0.0 if record.search is None else record.search.seconds,
    Measure("peak MiB", 0): lambda record: record.memory.peak_mb,
    Measure("TFLOPs of training", 2, 1e-12): lambda record: None if record.flops is None else record.flops.training,
    Measure("MFLOPs more a row", 1, 1e-6): lambda record: None if record.flops is None else record.flops.more,
    Measure("kJ of CPUs", 2, 1e-3): lambda record: None if record.energy is None else record.energy.cpu,
    Measure("kJ of GPU", 2, 1e-3): lambda record: None if record.energy is None else record.energy.gpu,
}
METERED = ("kJ of CPUs", "kJ of GPU")


def line(records: Sequence[Record]) -> str:
    """The cost of these runs in a line, failed ones and each search once included.

    A core hour is an hour of one thread; a run with a GPU counts in hours of its GPUs.
    """
    hours = {"core": 0.0, "GPU": 0.0}
    searches: set[tuple[str, ...]] = set()
    for record in records:
        seconds = record.time.total_s
        if record.search is not None and (tries := tuple(sorted(record.search.folders))) not in searches:
            searches.add(tries)
            seconds += record.search.seconds
        hardware = record.hardware
        if hardware.device == "cpu":
            hours["core"] += seconds * hardware.threads * hardware.processes / HOUR
        else:
            hours["GPU"] += seconds * hardware.processes / HOUR
    parts = [f"{amount:.2f} {unit} hours" for unit, amount in hours.items() if amount]
    workers = {(record.worker.host, record.worker.process) for record in records if record.worker is not None}
    hosts = len({host for host, _ in workers})
    on = f" on {quantity(len(workers), 'worker')} of {quantity(hosts, 'host')}" if len(workers) > 1 else ""
    return f"cost: {' and '.join(parts) or '0 core hours'}{on}"


def sheet(study: Study) -> Sheet:
    """The costs of every cell of the study's table."""
    cells = []
    for place in axes.places(study):
        values = {
            measure.name: [value for _, record in place.runs if (value := cost(record)) is not None]
            for measure, cost in COSTS.items()
        }
        cells.append(Measured(place, values, len(place.runs)))
    machines = dict.fromkeys(_machine(record) for record in study.done())
    notes = [
        f"times and memory measured on: {'; '.join(machines)}",
        "memory: of the process, or of the GPU where there is one; search: once for all seeds of a cell",
        "FLOPs: of matrix products and attention, a multiplication and an addition being two; more a row: what the "
        "method, not merged, adds to the longest row of train, forward through the backbone",
        "–: the record does not say",
    ]
    if any(cell.values[name] for cell in cells for name in METERED):
        said = "energy: all that the machine's own meters counted during the run, other work on the same CPUs included"
        notes.insert(-1, said)
    return axes.sheet(f"{study.name}: what runs cost, mean ± sd", [*COSTS], cells, notes)


def _step(record: Record) -> float | None:
    speed = record.throughput
    return None if speed is None or not speed.steps_per_s else 1000 / speed.steps_per_s


def _machine(record: Record) -> str:
    hardware = record.hardware
    cores = "" if hardware.cores is None else f" of {hardware.cores} cores"
    return f"{hardware.device}, {hardware.processes} x {hardware.threads} threads{cores}"
