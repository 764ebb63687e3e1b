"""Deltas and whole models: what a run learned, put into a file and back into a backbone."""

import re
from collections.abc import Collection
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from peftbench.backbone.heads import leave_one, tasks_in
from peftbench.backbone.model import Model, empty_copy, load_model
from peftbench.backbone.weights import beside, file_sha256
from peftbench.config import compose
from peftbench.config.spec import Attachment, Layout, ModelSpec, Task
from peftbench.config.validate import make_method, parse, unknown_class
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import DELTA_FILE, RECORD_FILE
from peftbench.ground.seeds import drawn_from
from peftbench.methods.base import Method, Tuner, copy_into
from peftbench.methods.dial import within
from peftbench.record import Record, read_record
from peftbench.runner import readouts
from peftbench.runner.delta import FRESH, HEAD, START, Delta, DeltaFacts, LearnedOn, facts_of

MOST_GROWTH = 4  # times the entries of backbone and delta: what a delta's method may make of them
WHOLE_SINCE = [0, 3]  # since then a delta holds what the run it started from had learned


def attach(attachment: Attachment, model: Model, seed: int) -> Tuner:
    """Freeze the backbone and attach a method; what the method draws comes from the seed's selection stream.

    Raises:
        ConfigError: the method finds nothing to train there.
    """
    for _, parameter in model.backbone():
        parameter.requires_grad_(False)
    recipe: Method = make_method(attachment.method)
    if attachment.budget.entries is not None:
        recipe = within(recipe, model, attachment.scope, attachment.budget.entries)
    with drawn_from(seed, "selection"):
        return recipe.attach(model, attachment.scope)


def learned(facts: DeltaFacts, model: Model, tuner: Tuner, start: Delta | None = None) -> Delta:
    """What the run learned: the tuner's part and the head, with all that is needed to use them.

    Args:
        facts: of the run alone.
        start: the delta that the run started from. Where another method learned it, it is a part of this one.
    """
    own = tuner.delta()
    head = {HEAD + name: parameter.detach() for name, parameter in model.head()}
    fresh = {FRESH + name: tensor for name, tensor in model.drawn.items() if name not in own}
    merged = start.start if start and goes_on(facts.attachment, start) else start
    before = {START + name: tensor for name, tensor in merged.tensors.items()} if merged else {}
    return Delta({**own, **head, **fresh, **before}, replace(facts, start=merged.facts if merged else None))


def restore(delta: Delta, model: Model, head: bool = True, known: Collection[str] = ()) -> Tuner:
    """Attach the delta's own method to a fresh model and put the delta in; `head=False` leaves the head alone.

    Args:
        known: classes outside this package that a delta may name, since the user's own configuration does.

    Raises:
        DataError: the delta was learned on another backbone, does not fit this one, or names an unknown class.
    """
    facts = delta.facts
    check(delta, model, known)
    put_fresh(delta, model)
    if start := delta.start:
        restore(start, model, head=False, known=known).merge()
    tuner = attach(facts.attachment, model, facts.seed)
    put(delta, tuner, model, head)
    return tuner


def check(delta: Delta, model: Model, known: Collection[str] = ()) -> None:
    """Refuse a delta of another backbone, or one whose method is not to be made.

    Raises:
        DataError: see `restore`.
    """
    check_backbone(delta, LearnedOn(model.name, model.weights_sha256))
    _check_classes(delta.facts, known)
    _check_size(delta, model)


def check_backbone(delta: Delta, here: LearnedOn) -> None:
    """Refuse a delta of another backbone.

    Raises:
        DataError: it was learned on another one, or on other weights.
    """
    if delta.facts.model != here:
        raise DataError(f"the delta was learned on {delta.facts.model.name} (other weights), not on this {here.name}")


def _check_classes(facts: DeltaFacts, known: Collection[str]) -> None:
    """Refuse a class that neither this package nor the user's configuration names, before anything imports it."""
    if stranger := unknown_class(facts.method, known):
        raise DataError(
            f"the delta names the class {stranger}, which is none of peftbench.methods; if it is yours, --searchpath "
            "(or the method of a run that goes on from it) names the configuration that says so"
        )


def _check_size(delta: Delta, model: Model) -> None:
    """Attach the delta's method where nothing takes memory, and refuse one that would take out of all proportion."""
    facts, planned = delta.facts, empty_copy(model)
    own = sum(parameter.numel() for parameter in planned.module.parameters())
    try:
        attach(facts.attachment, planned, facts.seed)
    except (ConfigError, RuntimeError) as error:  # torch's own, where a size has too many digits
        reason = error.every[0] if isinstance(error, ConfigError) else str(error)
        raise DataError(f"the delta's method cannot be made: {reason}") from None
    entries = sum(parameter.numel() for parameter in planned.module.parameters())
    stored = sum(tensor.numel() for tensor in delta.tensors.values())
    if entries > MOST_GROWTH * (own + stored):
        raise DataError(f"the delta's method makes {entries:,} entries of {own:,}, and the delta stores {stored:,}")


def start_of(init_from: str | None, task: Task, known: Collection[str]) -> Delta | None:
    """The delta of the run in this folder; None where it starts from the weights alone.

    Args:
        task: what is learned from there on.
        known: see `restore`.

    Raises:
        ConfigError: it was learned on other tasks than those that are learned together now.
        DataError: it cannot be read, or names an unknown class.
    """
    if init_from is None:
        return None
    start = delta_of(Path(init_from))
    _check_classes(start.facts, known)
    several, own = tasks_in(start.named(HEAD)), {part.name for part in task.parts}
    if (len(own) > 1 and several != own) or (several and task.train is None):
        learned = ", ".join(sorted(several)) or start.facts.task.name
        raise ConfigError(
            f"init_from={shown(init_from, 80)}: learned {learned}, not {', '.join(sorted(own))}; task=joint goes "
            "on from a run of the same tasks, and a task without training rows from one of one task"
        )
    return start


def goes_on(attachment: Attachment, start: Delta) -> bool:
    """Whether this delta is trained further where this is attached, instead of merged; what the method is called does
    not count."""
    own, its = (replace(one, method=replace(one.method, name="")) for one in (attachment, start.facts.attachment))
    return own == its


def reload(run: Path, known: Collection[str] = (), task: str | None = None) -> tuple[Model, Tuner, Method]:
    """A finished run's model with its tuner and method, as they were at the selected evaluation, in fp32.

    Args:
        known: see `restore`.
        task: which of the tasks that it learned together: the model is one of that task alone.

    Raises:
        ConfigError: it has no such task, or several and none is named.
        DataError: the run's record, delta or weights cannot be read.
    """
    record, delta = read_record(run / RECORD_FILE), delta_of(run)
    spec, wanted = model_spec(record), readouts.one_task(record, task, run)
    model, _ = load_model(spec, delta.facts.task.labels, delta.facts.seed, readouts.recorded(record, spec))
    if record.hashes.beside not in (None, beside(spec.weights)):
        files = f"{spec.weights}: config.json or the tokenizer's files"
        raise DataError(f"{files} are not those that {run} was made with")
    tuner = restore(delta, model, known=known)
    if "tasks" in record.config["task"]:
        leave_one(model.module, wanted.name, wanted.num_labels)
    return model, tuner, make_method(delta.facts.method)


def model_spec(record: Record) -> ModelSpec:
    """The backbone of a record; what its layout does not say is as in today's yaml of that model.

    Raises:
        DataError: the record's model is not one of this version.
    """
    word, raw = record.cell.model, record.config["model"]
    newer = {field.name for field in fields(Layout)} - set(raw["layout"])
    if newer and word in compose.words("model"):
        today = asdict(compose.cell_from([f"model={word}"]).model.layout)
        raw = {**raw, "layout": {**today, **raw["layout"]}}
    try:
        return parse(ModelSpec, {"name": word, **raw}, "model")
    except ConfigError as error:
        raise DataError(f"the record's model is not one of this version: {error.every[0]}") from None


def delta_of(run: Path) -> Delta:
    """The delta in a run's folder; an edit together with what its run had learned, which is not stored again.

    Raises:
        DataError: it cannot be read, is not the one that the record beside it was made with, or may be a part alone.
    """
    delta, record = Delta.load(run / DELTA_FILE), read_record(run / RECORD_FILE)
    made_by = record.versions.get("peftbench", "0")
    if record.config.get("init_from") and [int(part) for part in re.findall(r"[0-9]+", made_by)[:2]] < WHOLE_SINCE:
        raise DataError(
            f"{run / DELTA_FILE}: peftbench {made_by} stored what was learned after init_from alone; run it again"
        )
    if file_sha256(run / DELTA_FILE) != record.hashes.delta:
        raise DataError(f"{run / DELTA_FILE}: not the delta that {RECORD_FILE} beside it was made with; it is refused")
    return delta if delta.is_whole else _completed(delta, run, record)


def _completed(edit: Delta, run: Path, record: Record) -> Delta:
    """An edit together with the delta of the run that its record names.

    Raises:
        DataError: that run is gone, has learned something else since, or is not the one that the edit is of.
    """
    parents = [(run.resolve().parents[2] / place, sha256) for place, sha256 in record.hashes.parents.items()]
    if len(parents) != 1:
        raise DataError(f"{run / DELTA_FILE}: an edit is of one run, and its record names {len(parents)}")
    place, sha256 = parents[0]
    if not (place / DELTA_FILE).is_file():
        raise DataError(f"{run}: an edit is used with the run that it is of, and {place} holds no {DELTA_FILE}")
    if file_sha256(place / DELTA_FILE) != sha256:
        raise DataError(f"{run}: the run that it edits has learned something else since; edit that again")
    if facts_of(place / DELTA_FILE) != edit.facts.start:  # which has one start less: forged records lead in no circle
        raise DataError(f"{run}: the edit is of another run than {place}")
    return edit.on(delta_of(place), read_record(place / RECORD_FILE).drawn)


def put(delta: Delta, tuner: Tuner, model: Model, head: bool = True) -> None:
    """Put a delta into its own method, attached to this model; `head=False` leaves the head alone.

    Raises:
        DataError: names or shapes are others there.
    """
    tuner.load_delta(own_of(delta))
    if head:
        copy_into(dict(model.head()), delta.named(HEAD))


def own_of(delta: Delta) -> dict[str, torch.Tensor]:
    """The tensors that are the method's own."""
    return {name: tensor for name, tensor in delta.tensors.items() if not name.startswith((HEAD, FRESH, START))}


def put_fresh(delta: Delta, model: Model) -> None:
    """What the weights lacked becomes what it was in the run: methods are attached to that, not to another draw."""
    stored, parameters = delta.named(FRESH), dict(model.backbone())
    drawn = {name: tensor for name, tensor in model.drawn.items() if name not in delta.tensors}
    copy_into({name: parameters[name] for name in drawn}, {name: stored[name] for name in stored if name in drawn})
    model.drawn = {**model.drawn, **stored}


def export_peft(run: Path, folder: Path, known: Collection[str] = ()) -> None:
    """Write a finished run's adapter and head in PEFT's format: LoRA's, or of a type that peft ran itself.

    Raises:
        DataError: the run cannot be read.
        ConfigError: its method has no PEFT format, or it learned several tasks together.
    """
    if len(tasks := readouts.task_of(read_record(run / RECORD_FILE)).parts) > 1:
        raise ConfigError(
            f"{run}: learned {len(tasks)} tasks together, and PEFT's format has one head; peftbench apply writes a "
            "folder for each"
        )
    model, tuner, method = reload(run, known)
    if not hasattr(method, "export_peft"):
        raise ConfigError(f"{run}: {type(method).__name__} has no PEFT format; LoRA and what peft runs have")
    if model.readout.pretrained:
        raise ConfigError(f"{run}: its readout is a prompt, which PEFT's format cannot say")
    if model.ranks:
        raise ConfigError(f"{run}: its backbone is low-rank, which PEFT's format cannot say; peftbench apply can")
    if delta_of(run).start:
        raise ConfigError(f"{run}: it started from another method's run, whose change PEFT's format does not hold")
    method.export_peft(tuner, model, folder)
