"""The zip that the GLUE server takes, from a study's test predictions; and a validator of any such zip.

File names, headers and values as in BitFit's glue_evaluator.py and jiant's glue_submission_formatter.py, which agree;
row counts as on the dataset card of nyu-mll/glue.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peftbench.ground import escape, predictions, untrusted
from peftbench.ground.errors import ConfigError, DataError, first_of, shown
from peftbench.ground.quantity import quantity
from peftbench.record import Record
from peftbench.report.records import Study

HEAD = "index\tprediction"
NLI = ("entailment", "neutral", "contradiction")
ENTAILMENT = ("entailment", "not_entailment")
BINARY = ("0", "1")
MOST_BYTES = 64 << 20  # of a zip
MOST_OF_A_FILE = 8 << 20  # unpacked; the largest, QQP.tsv, has 4 MB
MOST_FILES = 200
STAMP = (1980, 1, 1, 0, 0, 0)  # equal predictions make equal zips


@dataclass(frozen=True)
class File:
    """One of the eleven files.

    Attributes:
        task: our word; split: whose predictions it holds.
        values: what may stand in it; None: a number from 0 to 5.
        rows: of the official test split.
        majority: the commonest label of train (its mean for STS-B), or, where the classes are as good as balanced,
            the first one.
    """

    name: str
    task: str
    split: str
    values: tuple[str, ...] | None
    rows: int
    majority: str


FILES = (
    File("CoLA.tsv", "cola", "test", BINARY, 1063, "1"),
    File("SST-2.tsv", "sst2", "test", BINARY, 1821, "1"),
    File("MRPC.tsv", "mrpc", "test", BINARY, 1725, "1"),
    File("STS-B.tsv", "stsb", "test", None, 1379, "2.701"),
    File("QQP.tsv", "qqp", "test", BINARY, 390965, "0"),
    File("MNLI-m.tsv", "mnli", "test_matched", NLI, 9796, "entailment"),
    File("MNLI-mm.tsv", "mnli", "test_mismatched", NLI, 9847, "entailment"),
    File("QNLI.tsv", "qnli", "test", ENTAILMENT, 5463, "entailment"),
    File("RTE.tsv", "rte", "test", ENTAILMENT, 3000, "entailment"),
    File("WNLI.tsv", "wnli", "test", BINARY, 146, "0"),
    File("AX.tsv", "ax", "test", NLI, 1104, "entailment"),
)


def write(study: Study, method: str, path: Path, fill: bool) -> list[str]:
    """Write the zip of a method's best runs by dev score; returns a line for every file, saying where it is from.

    Args:
        fill: give tasks without a run the majority class.

    Raises:
        ConfigError: the study has no run of the method, or tasks have none with test predictions and `fill` is off.
        DataError: predictions do not fit the official test split.
    """
    runs = [
        (folder, record)
        for folder, record in zip(study.folders, study.records, strict=True)
        if record.status == "done" and record.cell.method == method
    ]
    if not runs:
        known = sorted({record.cell.method for record in study.records})
        raise ConfigError(f"--method {method}: no finished run in study {study.name}; it has {', '.join(known)}")
    contents: dict[str, str] = {}
    lines, missing = [], []
    mnli = _best(runs, "mnli", "test_matched")
    for file in FILES:
        best = _best(runs, file.task, file.split, None if file.task != "ax" or mnli is None else mnli[0])
        if best is None:
            missing.append(file.name)
            contents[file.name] = _content(file, [file.majority] * file.rows)
            lines.append(f"{file.name}: no run; the majority class {file.majority}")
        else:
            folder, record = best
            contents[file.name] = _content(file, _values(file, folder, record))
            score = "" if record.headline.value is None else f", dev {100 * record.headline.value:.1f}"
            lines.append(escape.terminal(f"{file.name}: {folder.parent.name}/{folder.name}{score}"))
    if missing and not fill:
        raise ConfigError(
            f"no run of {method} with test predictions (predict_test=true) for {first_of(missing)}; "
            "--fill-majority puts the majority class there"
        )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in contents.items():
            archive.writestr(zipfile.ZipInfo(name, STAMP), text, zipfile.ZIP_DEFLATED)
    if problems := check(path):
        path.unlink()
        raise DataError(problems)
    return lines


def check(path: Path) -> list[str]:
    """What is wrong with a submission: a line for every file that is; none where the server would take it.

    Raises:
        DataError: it is no zip file, or one too large to be a submission.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(untrusted.read_bytes(path, MOST_BYTES))) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MOST_FILES:
                raise DataError(f"{path}: {len(members):,} files, a submission has {len(FILES)}")
            return [f"{path}: {problem}" for problem in _problems(archive, members)]
    except OSError as error:
        raise DataError(f"{path}: not a readable zip file ({error.strerror or error})") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable zip file ({shown(error, 100)})") from None


def _problems(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> Iterator[str]:
    names = [file.name for file in FILES]
    given = [member.filename for member in members]
    for name in dict.fromkeys(given):
        if name not in names:
            yield f"{shown(name)} is none of the official files ({', '.join(names)})"
        elif given.count(name) > 1:
            yield f"{name} is there {given.count(name)} times"
    for file in FILES:
        member = next((member for member in members if member.filename == file.name), None)
        if member is None:
            yield f"has no {file.name}"
            continue
        try:
            problem = _problem(file, _unpacked(archive, member))
        except ValueError as error:
            problem = f": {error}"
        if problem is not None:
            yield f"{file.name}{problem}"


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The content of a file in a zip.

    Raises:
        ValueError: it is encrypted, compressed in another way than the server takes, damaged or too large.
    """
    if member.flag_bits & 1:
        raise ValueError("is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("is compressed by another method than deflate")
    try:
        with archive.open(member) as file:  # what the zip says of its size is not believed
            content = file.read(MOST_OF_A_FILE + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"is damaged ({shown(error, 100)})") from None
    if len(content) > MOST_OF_A_FILE:
        raise ValueError(f"larger than {MOST_OF_A_FILE:,} bytes")
    return content


def _problem(file: File, content: bytes) -> str | None:
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        return f": not UTF-8 at byte {error.start}"
    if not lines or lines[0] != HEAD:
        return ", line 1: must be index<TAB>prediction"
    if len(lines) - 1 != file.rows:
        return f": {quantity(len(lines) - 1, 'row')}, the official test split has {file.rows:,}"
    for number, line in enumerate(lines[1:]):
        index, tab, value = line.partition("\t")
        if not tab or index != str(number):
            return f", line {number + 2}: must begin with the index {number} and a tab"
        if file.values is not None and value not in file.values:
            return f", line {number + 2}: '{shown(value)}' is none of {', '.join(file.values)}"
        if file.values is None and not _is_score(value):
            return f", line {number + 2}: '{shown(value)}' is no number from 0 to 5"
    return None


def _is_score(text: str) -> bool:
    try:
        return math.isfinite(value := float(text)) and 0 <= value <= 5
    except ValueError:
        return False


def _best(
    runs: list[tuple[Path, Record]], task: str, split: str, start: Path | None = None
) -> tuple[Path, Record] | None:
    """The run with the best dev score that has predictions of the split; `start`: only runs that start from there."""
    fits = [
        (folder, record)
        for folder, record in runs
        if record.cell.task == task
        and predictions.path_of(folder, split).is_file()
        and (start is None or Path(str(record.config.get("init_from"))).resolve() == start.resolve())
    ]
    return max(fits, key=lambda run: -1.0 if run[1].headline.value is None else run[1].headline.value, default=None)


def _values(file: File, folder: Path, record: Record) -> list[str]:
    """Predictions of a run as the server wants them.

    Raises:
        DataError: they cannot be read, or are none of this task.
    """
    predicted = [prediction for prediction, _ in predictions.read(folder, file.split)]
    try:
        if file.values is None:
            return [f"{min(5.0, max(0.0, float(value))):.3f}" for value in predicted]
        if file.values is BINARY:
            labels = record.config["task"]["labels"] or []
            return [str(labels.index(value)) for value in predicted]
    except ValueError as error:
        raise DataError(f"{predictions.path_of(folder, file.split)}: not of task {file.task} ({error})") from None
    return predicted


def _content(file: File, values: list[str]) -> str:
    out = io.StringIO()
    out.write(f"{HEAD}\n")
    out.writelines(f"{index}\t{value}\n" for index, value in enumerate(values))
    return out.getvalue()
