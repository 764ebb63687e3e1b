"""The bridge: any type of peft on this loop, counted, seeded, stored, resumed, merged and exported."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import assemble, losses, values
from torch.utils.cpp_extension import CUDA_HOME

from peftbench.backbone.model import load_model
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError
from peftbench.methods import peft_types
from peftbench.methods.peft_tuners import PeftTuner
from peftbench.runner import deltas
from peftbench.runner.counts import count_cell
from peftbench.runner.run import Outcome

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'peftbench[peft]'")

ROOT = Path(__file__).resolve().parents[1]
D, F, L = 128, 512, 2  # bert_tiny
Make, Run = Callable[..., Cell], Callable[..., Outcome]


def vera(*words: str) -> list[str]:
    return ["method=peft", "method.type=vera", "method.config.r=16", *words]


def both_losses(ours: Cell, theirs: Cell, copied: Callable[[str], str], steps: int) -> np.ndarray:
    """Losses (2, steps) of a method of ours and of the bridge's from the same start; the heads must agree at the end.

    Args:
        copied: the bridge's name of a trainable of ours.
    """
    (model, tuner, trainer), (other, bridge, following) = assemble(ours), assemble(theirs)
    assert {copied(name) for name in tuner.trainables()} == set(bridge.trainables())
    for name, parameter in tuner.trainables().items():
        bridge.trainables()[copied(name)].data.copy_(parameter)
    series: list[list[float]] = []
    for one in (trainer, following):
        one.begin(total=steps)
        series.append([])
        for step in range(steps):
            one.model.noise.seed(step)
            batches = one.order(step // 6)
            series[-1].append(one.loss(batches[step % 6]).item() / len(batches[step % 6]))
            one.step(step, batches[step % 6])
    for (name, p), (_, q) in zip(model.head(), other.head(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4, msg=name)
    return np.array(series)


SAME = ("protocol.precision=fp32", "protocol.lr=0.01", "protocol.weight_decay=0.1")


def test_lora_of_ours_and_the_bridges_have_the_same_losses(tiny: Make) -> None:
    words = ("method.config.r=8", "method.config.lora_alpha=16", "method.config.lora_dropout=0.2")
    series = both_losses(
        tiny("method=lora", "method.dropout=0.2", *SAME),
        tiny("method=peft", "method.type=lora", *words, *SAME),
        lambda name: f"{name}.default.weight",
        steps=6,
    )
    np.testing.assert_allclose(*series, rtol=1e-5)
    assert len(set(series[0])) == 6


def test_adalora_of_ours_and_the_bridges_have_the_same_losses(tiny: Make) -> None:
    """With a mask after every step; the bridge counts steps from 1, so that its schedule comes one step earlier."""
    kinds = "method.kinds=[query,value,intermediate]"
    ours = ("method=adalora", "method.rank=6", "method.target_rank=3", "method.alpha=16", kinds, "method.every=1")
    theirs = {"init_r": 6, "target_r": 3, "lora_alpha": 16, "deltaT": 1, "tinit": 4, "tfinal": 5}
    theirs |= {"beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.1}
    config = (f"method.config.{key}={value}" for key, value in theirs.items())
    series = both_losses(
        tiny(*ours, "method.initial=3", "method.final=6", *SAME),
        tiny("method=peft", "method.type=adalora", kinds, *config, *SAME),
        lambda name: f"{name}.default",
        steps=18,
    )
    np.testing.assert_allclose(*series, rtol=0, atol=1e-5)


def projections(tiny: Make, *words: str) -> torch.Tensor:
    _, tuner, _ = assemble(tiny(*vera(*words)))
    return tuner.delta()["base_model.vera_A"]


def test_what_peft_draws_follows_the_runs_seed_unless_its_own_is_given(tiny: Make) -> None:
    first, again, other = (projections(tiny, f"seed={seed}") for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    key = "method.config.projection_prng_key=0"
    assert torch.equal(projections(tiny, key, "seed=1"), projections(tiny, key, "seed=2"))
    assert tiny(*vera()).fingerprint != tiny(*vera(key)).fingerprint


def test_the_delta_holds_what_peft_stores_and_not_projections_where_it_does_not(run_tiny: Run) -> None:
    for words, projections in (((), 2 * 16 * D), (("method.config.save_projection=false",), 0)):
        outcome = run_tiny(*vera(*words))
        counts = outcome.record.counts
        assert counts is not None
        assert counts.backbone == L * 2 * (D + 16)
        assert counts.stored_bytes == 4 * (counts.backbone + projections + 2 * D + 2)
        again = run_tiny("method=head", f"init_from={outcome.path.parent}")  # projections come from the seed, too
        assert again.record.status == "done"


BUDGETS = [
    ("vera", 2300, 2 * L * (D + 447)),
    ("dora", 5000, L * (4 * D * 4 + 2 * D)),
    ("shira", 3000, 2 * L * 2 * D * 2),
    ("hra", 2 * L * D * 5 + 40, 2 * L * D * 4),  # an odd number of reflections cannot start at the backbone
]
BUDGETS += [("oft", 2000, 2 * L * D * 7 // 2), ("boft", 5000, 0), ("c3a", 5000, 2 * L * D * D // 16)]
BUDGETS += [("lokr", 1000, 0), ("gralora", 5000, 2 * L * 2 * D * 4), ("randlora", 5000, 0)]
BUDGETS += [("prompt_tuning", 1000, 7 * D), ("prefix_tuning", 5000, 9 * 2 * L * D)]
BUDGETS += [("fourierft", 1001, 1000), ("psoft", 1000, 0), ("unilora", 777, 777), ("vblora", 9000, 0)]


@pytest.mark.parametrize(("word", "budget", "expected"), BUDGETS)
def test_a_budget_turns_the_types_own_size(tiny: Make, word: str, budget: int, expected: int) -> None:
    backbone = count_cell(tiny(f"method={word}", f"budget={budget}")).backbone
    assert 0 < backbone <= budget
    assert not expected or backbone == expected


def test_a_budget_where_one_size_of_a_block_or_none_divides_the_maps(tiny: Make) -> None:
    small = ["method=oft", "model.config.hidden_size=7", "model.config.num_attention_heads=1", "budget=500"]
    assert count_cell(tiny(*small, "method.kinds=[query]")).backbone == L * 7 * 6 // 2, "a block of 7, and no other"
    uneven = ["method.kinds=[query,intermediate]", "model.config.intermediate_size=9"]
    with pytest.raises(ConfigError, match="no oft_block_size of peft's oft divides the sides of all maps here"):
        count_cell(tiny(*small, *uneven))


@pytest.mark.parametrize("word", ["vera", "dora", "pissa", "ln_tuning", "hra"])
def test_the_change_of_the_backbone_is_what_merging_makes_of_it(tiny: Make, word: str) -> None:
    cell = tiny(f"method={word}", "protocol.precision=fp32", "protocol.lr=0.01")
    before = values(load_model(cell.model, 2, cell.seed)[0])
    model, tuner, trainer = assemble(cell)
    trainer.run()
    changes = dict(tuner.update(before))
    tuner.merge()
    assert changes
    for name, p in model.backbone():
        torch.testing.assert_close(p, before[name] + changes.get(name, 0), atol=1e-5, rtol=1e-5)


def test_peft_takes_part_in_what_other_methods_do(tiny: Make, run_tiny: Run) -> None:
    """Strata, a kept prefix, and a selective method inside: none of them knows it."""
    target = "_target_: peftbench.methods.peft.Peft"
    below = ("method=spafit", "method.strata.frozen.last=0", "method.strata.biases.last=0", "method.elsewhere=[]")
    parts = (
        f"norms: {{{target}, type: ln_tuning, kinds: [layer_norm]}}",
        f"keys: {{{target}, type: ia3, kinds: [key]}}",
    )
    strata = [f"+method.strata.frozen.methods.{name}={part}" for name, part in (text.split(": ", 1) for text in parts)]
    record = run_tiny(*below, *strata).record
    lora, biases = 3 * 2 * D * 64, 2 * D + F  # of the layer above: what its own stratum trains
    assert record.counts is not None
    assert record.counts.backbone == 4 * D + D + lora + biases
    inside = run_tiny("method=id3", f"method.inner={{{target}, type: lora}}", "budget=50").record.counts
    assert inside is not None
    assert inside.backbone == 50
    top = ["method=vera", "scope.layers=1", "protocol.precision=fp32"]
    plain, kept = (losses(run_tiny(*top, f"protocol.keep_prefix={word}").path.parent) for word in ("false", "true"))
    assert len(plain) == len(kept) == 6
    wrong = f"+method.strata.frozen.methods.keys={{{target}, type: ia3, config: {{rr: 1}}}}"
    line = r"method\.strata\.frozen\.methods\.keys\.config\.rr: peft's ia3 has no such key"
    with pytest.raises(ConfigError, match=line):
        compose.cell_from(["method=spafit", wrong])


WRONG = [
    (["method=peft"], r"method: type must be given, or adapter_config; the types are adalora"),
    (["method=peft", "method.type=verra"], r"method\.type=verra: .* did you mean vera"),
    (["method=peft", "method.type=poly"], r"method\.type=poly: needs a task number"),
    (["method=peft", "method.type=prefix_tuning"], r"method\.config\.num_virtual_tokens: must be given"),
    (["method=prompt_tuning", "method.config.num_virtual_tokens=0"], r"num_virtual_tokens=0: must be at least 1"),
    (["method=prompt_tuning", "method.config.token_dim=8"], r"method\.config\.token_dim: not to be given here"),
    (["method=prompt_tuning", "method.config.prompt_tuning_init=TEXT"], r"asks for a tokenizer by name"),
    (["method=prompt_tuning", "method.config.prompt_tuning_init=RANDM"], "=RANDM: .*did you mean RANDOM"),
    (["method=p_tuning", "method.config.encoder_hidden_size=0"], r"encoder_hidden_size=0: must be at least 1"),
    (["method=prefix_tuning", "protocol.max_length=500"], r"protocol\.max_length=500: .* 512 positions, 20 of them"),
    (vera("method.config.rr=4"), r"method\.config\.rr: peft's vera has no such key; did you mean r"),
    (vera("method.config.r=4.5"), r"method\.config\.r=4\.5: must be a valid integer"),
    (vera("method.config.r=0"), r"method\.config\.r=0: must be at least 1"),
    (vera("method.config.target_modules=[query]"), r"target_modules: not to be given here; method\.kinds and scope"),
    (["method=rslora", "method.config.bias=all"], r"every bias would train, outside the scope too"),
    (["method=pissa", "method.config.init_lora_weights=corda"], r"passes over the data first"),
    (["method=pissa", "method.config.init_lora_weights=eva"], r"eva_config\.rho=2: must be 1; ranks that move"),
    (["method=eva", "method.config.eva_config.rho=1.5"], r"eva_config\.rho=1\.5: must be 1; ranks that move"),
    (["method=eva", "+method.config.eva_config.tua=0.9"], r"eva_config\.tua: there is no such key; did you mean tau"),
    (["method=eva", "+method.config.rank_pattern={query: 2}"], r"rank_pattern: every map has the same rank under EVA"),
    (
        ["method=peft", "method.type=adalora", "method.config.init_lora_weights=eva"],
        r"init_lora_weights=eva: is a start of LoRA, not of adalora",
    ),
    (["method=peft", "method.type=adalora", "method.config.r=4"], r"init_r and target_r are meant"),
    (["method=peft", "method.type=adalora", "method.config.init_r=2"], r"target_r=8: above init_r, which is 2"),
    (["method=peft", "method.type=adalora", "method.config.deltaT=0"], r"deltaT=0: must be at least 1"),
    (["method=peft", "method.type=adalora", "method.config.beta1=1.5"], r"beta1=1\.5: must be between 0 and 1"),
    (["method=hra", "method.config.r=5"], r"method\.config\.r=5: must be even, or it cannot start as it should"),
    (["method=pissa", "method.config.init_lora_weights=orthogonal", "method.config.r=3"], r"r=3: must be even"),
    (
        ["method=vblora", "method.config.topk=100"],
        r"num_vectors=64: must be at least topk: it mixes so many different vectors",
    ),
    (["method=gralora", "method.config.r=3"], r"method\.config\.r=3: must be a multiple of gralora_k"),
    (["method=oft", "method.config.oft_block_size=1"], r"oft_block_size=1: must be at least 2"),
    (["method=vblora", "method.config.topk=0"], r"method\.config\.topk=0: must be at least 1"),
    (["method=p_tuning", "method.config.encoder_num_layers=3"], r"encoder_num_layers=3: of an LSTM; an MLP has two"),
    (["method=osf", "method.config.effective_rank=1.5"], r"effective_rank=1\.5: must be a whole number, or a share"),
    (["method=boft", "method.config.boft_n_butterfly_factor=0"], r"butterfly_factor=0: must be at least 1"),
    (["method=adamss", "method.config.subspace_rank=0"], r"subspace_rank=0: must be at least 1"),
    (["method=lora", "method.config.r=4"], r"method\.config: there is no such key"),
    (["method=peft", "method.adapter_config=/nowhere"], r"/nowhere: no readable adapter_config\.json there"),
]
WRONG_HERE = [
    (["method=c3a", "method.config.block_size=100"], r"peft's c3a refuses it here: .* factor of the input size"),
    (["method=vera", "method.kinds=[layer_norm]"], r"no linear map for peft's vera"),
    (["method=ln_tuning", "method.kinds=[query]"], r"no norm for peft's ln_tuning"),
    (["method=prompt_tuning", "scope.layers=1"], r"no embeddings for peft's prompt_tuning in layers \[1\]"),
    (["method=prefix_tuning", "scope.layers=1"], r"acts on the keys and values of every layer, not in layers \[1\]"),
    (
        ["method=prompt_tuning", "method.targets=[query]"],
        r"method\.targets: peft's prompt_tuning is put in no module",
    ),
    (["method=peft", "method.type=osf", "method.config.effective_rank=999"], r"nothing of peft's osf would train here"),
    (
        ["method=pissa", "method.config.r=129"],
        r"method\.config\.r=129: above the shortest side of a map here, which is 128",
    ),
    (["method=boft", "method.config.boft_block_size=7"], r"refuses it here: in_features \(128\) must be divisible"),
    (
        ["method=oft", "method.config.oft_block_size=24"],
        r"not take it here: Invalid .* Adjusted `oft_block_size`",
    ),
    (["method=ia3", "method.config.feedforward_modules=[nope]"], r"feedforward_modules: nope is no map that is scaled"),
    (["method=ia3", "budget=500"], r"budget: 500 entries; peft's ia3 takes none"),
    (["method=vera", "budget=10"], r"budget: 10 entries; peft's vera here needs at least 516 \(r 1\)"),
    (["method=vblora", "budget=200"], r"budget: 200 entries; peft's vblora here needs at least 256 \(num_vectors 2\)"),
    (["method=prompt_tuning", "budget=100000"], r"max_length=\d+: \w+ has 512 positions, 781 of them for the method's"),
    (["method=hra", "budget=600"], r"budget: 600 entries; peft's hra here needs at least 1,024 \(r 2\)"),
    (["method=beft", "model=modernbert_base", "model.config.vocab_size=99999"], r"no linear map with a bias"),
    (
        ["method=prefix_tuning", "model=distilbert"],
        r"a distilbert takes no keys and values from outside",
    ),
]


@pytest.mark.parametrize(("words", "line"), WRONG, ids=[" ".join(words)[:60] for words, _ in WRONG])
def test_bad_input_is_one_line(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        compose.cell_from(words)
    assert len(caught.value.every) == 1


@pytest.mark.parametrize(("words", "line"), WRONG_HERE, ids=[" ".join(words)[:60] for words, _ in WRONG_HERE])
def test_what_a_backbone_cannot_have_is_one_line_before_weights(tiny: Make, words: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        count_cell(tiny(*words))
    assert len(caught.value.every) == 1


@pytest.mark.skipif(CUDA_HOME is not None, reason="peft compiles its kernel here, and takes the factor")
def test_a_factor_that_peft_would_replace_is_refused(tiny: Make) -> None:
    with pytest.raises(ConfigError, match=r"peft's boft would not take it here: Setting boft_n_butterfly_factor to 1"):
        count_cell(tiny("method=boft", "method.config.boft_n_butterfly_factor=2"))


def test_without_peft_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    peft_types.keys.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(peft_types, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"peft is not installed.*pip install 'peftbench\[peft\]'") as caught:
        compose.cell_from(["method=vera"])
    assert len(caught.value.every) == 1
    assert compose.cell_from(["method=lora"]).fingerprint
    monkeypatch.undo()
    peft_types.keys.cache_clear()


def test_lilys_second_factors_are_shared_by_the_layers_of_a_scope(tiny: Make) -> None:
    """By maps of one kind, however few there are; nothing outside the scope is touched."""
    words = ["method=lily", "method.kinds=[query,output]", "model.config.num_hidden_layers=3", "scope.layers=[0,2]"]
    model, tuner, _ = assemble(tiny(*words))
    shared: dict[str, set[int]] = {}
    for name, p in model.module.named_parameters(remove_duplicate=False):
        if ".lily_B." in name:
            shared.setdefault(name.split(".lily_B.")[0].rpartition("layer.")[2][2:], set()).add(id(p))
    assert {kind: len(ids) for kind, ids in shared.items()} == {"attention.self.query": 1, "output.dense": 1}
    assert {name.split(".layer.")[1][0] for name in tuner.trainables()} == {"0", "2"}
    assert sum(p.numel() for p in tuner.trainables().values()) == 2 * 32 * (D + F) + 2 * 2 * 32 * D + 2 * 2 * 32 * 2


def test_eva_starts_at_the_directions_in_which_what_is_read_varies_most(tiny: Make) -> None:
    """The logits stay the backbone's; of the variance of what every map reads nearly as much is in A as can be."""
    cell = tiny("method=eva", "protocol.precision=fp32", "method.kinds=[query,intermediate]")
    model, tuner, trainer = assemble(cell)
    before, logits = values(model), trainer.evaluator.predict(trainer.scored["dev"])
    trainer.begin(total=6)
    np.testing.assert_array_equal(trainer.evaluator.predict(trainer.scored["dev"]), logits)
    assert all(p.grad is None for p in model.module.parameters())
    read: dict[str, list[torch.Tensor]] = {}
    for name in tuner.trainables():
        path = name.rpartition(".lora_A")[0]
        if path:
            model.module.get_submodule(path).register_forward_pre_hook(
                lambda _, inputs, path=path: read.setdefault(path, []).append(inputs[0])
            )
    assert trainer.train is not None
    model.module.eval()
    for rows in trainer.order(0):
        batch = trainer.forward.batch(trainer.train, rows)
        trainer.forward.logits(batch)
        for tokens in read.values():
            tokens[-1] = tokens[-1][batch.inputs["attention_mask"].bool()]
    assert len(read) == 2 * L
    for path, tokens in read.items():
        states = torch.cat(tokens).detach()
        states = states - states.mean(0)
        directions = tuner.trainables()[f"{path}.lora_A.default.weight"].detach()
        torch.testing.assert_close(directions @ directions.T, torch.eye(8), atol=1e-3, rtol=0)
        most = torch.linalg.svdvals(states)[:8].square().sum()
        assert (states @ directions.T).square().sum() > 0.9 * most
        assert (states @ before[f"{path}.lora_A.default.weight"].T).square().sum() < 0.5 * most


@pytest.mark.parametrize("word", ["p_tuning", "prefix_tuning"])
def test_a_prompt_is_exported_as_peft_reads_it_and_its_run_can_go_on(run_tiny: Run, tmp_path: Path, word: str) -> None:
    """In bf16, where a prompt's keys and values meet the backbone's; peft loads the prompt without its maker."""
    outcome = run_tiny(f"method={word}", "protocol.lr=0.05")
    model, _, _ = deltas.reload(outcome.path.parent)
    deltas.export_peft(outcome.path.parent, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert stored["prompt_embeddings"].numel() == 20 * D * (2 * L if word == "prefix_tuning" else 1)
    plain, _ = load_model(deltas.model_spec(outcome.record), 2, 7)
    loaded = peft.PeftModel.from_pretrained(plain.module, tmp_path / "adapter").eval()
    inputs = {"input_ids": torch.arange(3, 43).reshape(4, 10), "attention_mask": torch.ones(4, 10).long()}
    model.module.eval()
    with torch.no_grad():
        ours, theirs = model.forward(inputs), loaded(**inputs).logits
        without = model.module(**inputs).logits
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert (without - ours).abs().max() > 1e-3, "the prompt is what the head reads"
    assert run_tiny(f"method={word}", f"init_from={outcome.path.parent}").record.status == "done"


def written(folder: Path, **changes: Any) -> str:
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "r": 4,
        "lora_alpha": 12,
        "target_modules": ["key", "output.dense"],
    }
    config |= {"modules_to_save": ["classifier"], "runtime_config": {"ephemeral_gpu_offload": False}, "bias": "none"}
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return f"method.adapter_config={folder}"


def test_a_configuration_of_peft_is_read_and_is_part_of_the_fingerprint(
    run_tiny: Run, tiny: Make, tmp_path: Path
) -> None:
    one, same, other = (written(tmp_path / name, r=r) for name, r in (("a", 4), ("b", 4), ("c", 5)))
    cells = [tiny("method=peft", words) for words in (one, same, other)]
    assert cells[0].fingerprint == cells[1].fingerprint != cells[2].fingerprint
    outcome = run_tiny("method=peft", one)
    assert outcome.record.counts is not None
    assert outcome.record.counts.backbone == L * 4 * (2 * D + 2 * D + D + F)  # key, and both maps called output.dense
    (tmp_path / "a" / "adapter_config.json").unlink()
    _, tuner, _ = deltas.reload(outcome.path.parent)
    assert isinstance(tuner, PeftTuner)
    for changes, line in (
        ({"target_modules": ".*query"}, "target_modules is a regular expression"),
        ({"layers_to_transform": [1]}, "layers_to_transform is not read; scope.layers"),
        ({"peft_type": None}, "names no peft_type"),
        ({"peft_type": "XLORA"}, "mixes adapters"),
        ({"rr": 3}, "peft's lora has no such key"),
    ):
        with pytest.raises(ConfigError, match=line):
            compose.cell_from(["method=peft", written(tmp_path / "d", **changes)])
    assert (
        count_cell(tiny("method=peft", written(tmp_path / "e", target_modules="all-linear"))).backbone > 4 * L * 6 * D
    )


def test_a_run_is_exported_and_peft_loads_its_logits(run_tiny: Run, tmp_path: Path) -> None:
    outcome = run_tiny("method=vera", "protocol.lr=0.01", "protocol.precision=fp32")
    deltas.export_peft(outcome.path.parent, tmp_path / "adapter")
    model, _, _ = deltas.reload(outcome.path.parent)
    plain, _ = load_model(deltas.model_spec(outcome.record), 2, 7)
    loaded = peft.PeftModel.from_pretrained(plain.module, tmp_path / "adapter").eval()
    ids = torch.arange(3, 43).reshape(4, 10)
    with torch.no_grad():
        ours, theirs = model.module.eval()(ids).logits, loaded(ids).logits
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["projection_prng_key"] > 0
    with pytest.raises(ConfigError, match="BitFit has no PEFT format"):
        deltas.export_peft(run_tiny("method=bitfit").path.parent, tmp_path / "x")
