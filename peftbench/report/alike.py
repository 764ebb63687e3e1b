"""What runs that are tested against each other were not made of alike: rows, weights, versions of packages."""

from collections import Counter
from collections.abc import Iterator

from peftbench.ground.quantity import quantity
from peftbench.record import Record
from peftbench.report.records import Study

DIGITS = 12  # of a hash, as a line shows it
DRAWN = ("train", "held_out", "unlabelled")  # of few labels: other rows in every split


def differing(study: Study) -> list[str]:
    """A line for everything that was not the same in all of a study's runs: what they had, and how many of them."""
    seen: dict[str, Counter[str]] = {}
    for record in study.records:
        for what, had in _made_of(record):
            seen.setdefault(what, Counter())[had] += 1
    lines = []
    for what, number_of in seen.items():
        parts = [f"{had} in {quantity(number, 'cell')}" for had, number in number_of.most_common()]
        lines += [f"not the same in all cells: {what}: {', '.join(parts)}"] if len(parts) > 1 else []
    return lines


def _made_of(record: Record) -> Iterator[tuple[str, str]]:
    """What a run was made of, and the hash or version of it; test rows score nothing."""
    cell, hashes = record.cell, record.hashes
    for split, sha256 in hashes.data.items():
        if not split.startswith(("test", *(DRAWN if record.few else ()))):
            yield f"{split} of {cell.task}", sha256[:DIGITS]
    yield f"weights of {cell.model}", "none" if hashes.weights is None else hashes.weights[:DIGITS]
    for what, known in (("tokenizer", hashes.tokenizer), ("config.json", hashes.beside)):
        if known is not None:  # older records do not know it
            yield f"{what} of {cell.model}", known[:DIGITS]
    yield from record.versions.items()
