"""Record what the authors' own code gives in tests/data/references.safetensors, for the tests that compare.

    python scripts/references.py FOLDER     repositories lie in FOLDER, or are cloned there

No code of theirs is part of this project: functions are cut out of their files at the commits named below and called on
drawn inputs. Inputs and outputs are kept, with the names of repository, commit, file and function beside them.
"""

import argparse
import ast
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

FILE = Path(__file__).resolve().parents[1] / "tests" / "data" / "references.safetensors"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """A function of the authors.

    Attributes:
        functions: what is cut out of the file; the first is the one that is called.
        within: the class that has them; "": the module; "__main__": no function, but the statements that are run as a
            script, up to the one that sets the first of these names.
    """

    repository: str
    commit: str
    path: str
    functions: tuple[str, ...]
    within: str = ""

    def cut(self, folder: Path, names: Mapping[str, Any]) -> dict[str, Any]:
        """The functions by name, with these names known to them; of a script what its names are in the end."""
        tree = ast.parse(self._text(folder))
        space: dict[str, Any] = {"torch": torch, "np": np, "F": functional, **names}
        if self.within == "__main__":
            helpers = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in self.functions]
            (script,) = (node for node in tree.body if isinstance(node, ast.If))
            statements = [node for node in script.body if isinstance(node, ast.Assign)]
            last = next(i for i, node in enumerate(statements) if ast.unparse(node.targets[0]) == self.functions[0])
            chosen: list[ast.stmt] = [*helpers, *statements[: last + 1]]
        else:
            body = tree.body
            if self.within:
                (found,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == self.within)
                body = found.body
            chosen = [node for node in body if isinstance(node, ast.FunctionDef) and node.name in self.functions]
        exec(compile(ast.Module(chosen, []), self.path, "exec"), space)
        return space

    def _text(self, folder: Path) -> str:
        place = folder / self.repository.partition("/")[2]
        if not place.exists():
            subprocess.run(["git", "clone", f"https://github.com/{self.repository}", place], check=True)
        shown = ["git", "-C", str(place), "show", f"{self.commit}:{self.path}"]
        return subprocess.run(shown, check=True, capture_output=True, text=True).stdout


HELPERS = ("normalize", "clamp", "act")
PCB = ("duguodong7/pcb-merging", "5897888b5d24adfcd33e124793d113746e00f3ff")
SOURCES = {
    "pcb": Source(*PCB, "pcb-merging.py", ("PCB_merge", *HELPERS)),
    "pcb_nlp": Source(*PCB, "nlp_source_code/utils/merge_utils.py", ("task_para_att_merge", *HELPERS)),
    "pcb_vision": Source(*PCB, "vision_source_code/pcb.py", ("merged_tv", *HELPERS), "__main__"),
    "pcb_search": Source(*PCB, "vision_source_code/pcb_ES.py", ("PCB", *HELPERS)),
    "ties": Source(
        "prateeky2806/ties-merging", "44e7891fc84f3de7e4caa52664cd864ca3715e91", "src/utils/merge_utils.py",
        ("topk_values_mask", "resolve_sign", "resolve_zero_signs", "disjoint_merge"),
    ),
    "regmean": Source(
        "bloomberg/dataless-model-merging", "92247aece13824c64f774b36732d297e9c5d7bc7",
        "src/model_merge/avg_merger.py", ("regmean_mean_params", "reduce_non_diag"), "FedAvgMerger",
    ),
    "flips": Source(
        "amazon-science/regression-constraint-model-upgrade", "fb2268c67706834632ec1427945fcf30a7218227",
        "nlp/model/evaluate.py", ("get_regression_metrics",),
    ),
    "orthogonality": Source(
        "sun-hailong/AAAI25-MOS", "8d5e07c1535176ca2fa0c36881f6fd630418ccbc", "models/mos.py",
        ("orth_loss",), "Learner",
    ),
    "retrieval": Source(
        "sun-hailong/AAAI25-MOS", "8d5e07c1535176ca2fa0c36881f6fd630418ccbc", "models/mos.py",
        ("_eval_cnn",), "Learner",
    ),
}  # fmt: skip


def pcb(functions: Mapping[str, Any], name: str, random: torch.Generator) -> Tensors:
    """Every variant on changes of several sizes and numbers of tasks; the vision script has eight, scaled by 1.2."""
    kept: Tensors = {}
    for tasks, keep in [(8, 0.05)] if name == "pcb_vision" else [(1, 0.3), (2, 0.1), (3, 0.5), (8, 0.05)]:
        rows = torch.randn(tasks, 300, generator=random) * torch.logspace(-3, -1, tasks)[:, None]
        case = f"{tasks}_{keep}"
        kept[f"{case}.rows"] = rows
        if name == "pcb_vision":
            made = functions["run"](tv_flat_checks=rows)["merged_tv"] / 1.2
        elif name == "pcb_search":
            clamped, scale = functions["PCB"](rows, pcb_ratio=keep)
            made = torch.sum(clamped * scale, dim=0) / torch.clamp(torch.sum(scale, dim=0), min=1e-12)
        else:
            made = functions[SOURCES[name].functions[0]](rows, keep)[0]
        kept[f"{case}.merged"] = made
    return kept


def ties(functions: Mapping[str, Any], _: str, random: torch.Generator) -> Tensors:
    """Trimmed over the whole vector, elected and averaged."""
    kept: Tensors = {}
    for tasks, share in ((2, 0.2), (5, 0.05), (3, 0.7)):
        rows = torch.randn(tasks, 300, generator=random)
        trimmed, _share = functions["topk_values_mask"](rows.clone(), K=share)
        signs = functions["resolve_sign"](trimmed, "mass")
        case = f"{tasks}_{share}"
        kept[f"{case}.rows"], kept[f"{case}.merged"] = rows, functions["disjoint_merge"](trimmed, "dis-mean", signs)
    return kept


def regmean(functions: Mapping[str, Any], _: str, random: torch.Generator) -> Tensors:
    """A linear map with its bias, of three tasks; off-diagonals left alone, made smaller, and cut."""
    tasks, out, inside = 3, 7, 5
    weights = [torch.randn(out, inside, generator=random) for _ in range(tasks)]
    biases = [torch.randn(out, generator=random) for _ in range(tasks)]
    inputs = [torch.randn(40, inside, generator=random) for _ in range(tasks)]
    grams = [{"map": x.T @ x} for x in inputs]
    kept = {"weights": torch.stack(weights), "biases": torch.stack(biases), "inputs": torch.stack(inputs)}
    for share in (1.0, 0.6, 0.0):
        config = SimpleNamespace(regmean_exclude_param_regex=[], regmean_diag=False, regmean_reduce_nondiag=share)
        own = SimpleNamespace(
            merger_config=config, reduce_non_diag=lambda gram, a: functions["reduce_non_diag"](None, gram, a)
        )
        made = functions["regmean_mean_params"](own, {"map.weight": weights, "map.bias": biases}, grams)
        kept[f"{share}.weight"], kept[f"{share}.bias"] = made["map.weight"].contiguous(), made["map.bias"]
    return kept


def flips(functions: Mapping[str, Any], _: str, random: torch.Generator) -> Tensors:
    """Negative flips as shares of all rows and of errors, and the new accuracy, in percent."""
    kept: Tensors = {}
    for classes, rows in ((2, 50), (3, 200), (2, 1), (3, 1)):
        old, new, truth = torch.randint(classes, (3, rows), generator=random)
        kept[f"{classes}_{rows}.answers"] = torch.stack([old, new, truth])
        ids = [*range(rows)]
        before = (ids, {row: row for row in ids}, old.numpy(), truth.numpy())
        made = functions["get_regression_metrics"](before, (new.numpy(), truth.numpy(), ids))
        kept[f"{classes}_{rows}.percent"] = torch.tensor(made, dtype=torch.float64)
    return kept


def orthogonality(functions: Mapping[str, Any], _: str, random: torch.Generator) -> Tensors:
    """The loss that keeps class means apart, of no class and of five."""
    means, features = torch.randn(5, 8, generator=random), torch.randn(6, 8, generator=random)
    kept = {"means": means, "features": features}
    for known in (0, 5):
        own = SimpleNamespace(cls_mean=dict(enumerate(means[:known])), args={"reg": 0.1}, _device="cpu")
        kept[f"loss_{known}"] = functions["orth_loss"](own, features, None)
    return kept


def retrieval(functions: Mapping[str, Any], _: str, random: torch.Generator) -> Tensors:
    """The answers of four tasks of two classes: found task by task, both classifiers together; many go in circles."""
    stages, rows, size = 4, 300, 6
    features = torch.randn(stages, rows, size, generator=random)
    head, prototypes = (torch.randn(2 * stages, size, generator=random) for _ in range(2))
    orig = functional.normalize(features[0]) @ functional.normalize(prototypes).T

    class Backbone:
        out_dim = size

        def __call__(self, x: torch.Tensor, adapter_id: int = 0, train: bool = False, fc_only: bool = False) -> Tensors:
            return {"logits": x @ head.T} if fc_only else {"features": features[adapter_id]}

    network = SimpleNamespace(backbone=Backbone(), eval=lambda: None, forward_orig=lambda x: {"logits": orig})
    own = SimpleNamespace(
        _network=network, _device="cpu", _total_classes=2 * stages, _cur_task=stages - 1, topk=1,
        cls2task={label: label // 2 for label in range(2 * stages)},
    )  # fmt: skip
    kept = {"features": features, "head": head, "prototypes": prototypes}
    nothing = torch.zeros(rows)
    for ensemble in (False, True):
        own.ensemble = ensemble
        answers, _truth = functions["_eval_cnn"](own, [(None, nothing, nothing)])
        kept["both" if ensemble else "head_alone"] = torch.from_numpy(answers[:, 0])
    return kept


MADE: dict[str, Callable[[Mapping[str, Any], str, torch.Generator], Tensors]] = {
    "ties": ties, "regmean": regmean, "flips": flips, "orthogonality": orthogonality, "retrieval": retrieval,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Call every function and keep what it gives."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the repositories lie, or are cloned to")
    asked = parser.parse_args(arguments)
    known = {"logging": SimpleNamespace(info=lambda *_: None), "re": __import__("re")}
    tensors: Tensors = {}
    for name, source in SOURCES.items():
        if source.within == "__main__":
            functions: dict[str, Any] = {"run": lambda s=source, **names: s.cut(asked.folder, {**known, **names})}
        else:
            functions = source.cut(asked.folder, known)
        made = MADE.get(name, pcb)(functions, name, torch.Generator().manual_seed(0))
        tensors |= {f"{name}.{key}": tensor for key, tensor in made.items()}
    sources = json.dumps({name: asdict(source) for name, source in SOURCES.items()})
    save_file(tensors, FILE, metadata={"sources": sources})
    print(f"{FILE}: {len(tensors)} tensors, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
