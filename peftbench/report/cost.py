"""What a study cost: core hours, GPU hours where there were GPUs, and on how many workers."""

from collections.abc import Sequence

from peftbench.record import Record

HOUR = 3600  # seconds


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
    on = f" on {len(workers)} workers of {hosts} host{'' if hosts == 1 else 's'}" if len(workers) > 1 else ""
    return f"cost: {' and '.join(parts) or '0 core hours'}{on}"
