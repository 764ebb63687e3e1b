"""The house: which folder may import which. A new edge is added here on purpose, or not at all."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "peftbench"

# Every folder (or module at the top) -> what it may import, from the ground up. Nothing points upward.
GROUND = {"ground", "record"}
ALLOWED: dict[str, set[str]] = {
    "ground": set(),
    "record": {"ground"},
    "config": GROUND,
    "papers": {*GROUND, "config"},
    "kernels": {"ground"},
    "sparse": {*GROUND, "kernels"},
    "data": {*GROUND, "config"},
    "backbone": {*GROUND, "config", "kernels", "data"},
    "methods": {*GROUND, "config", "sparse", "backbone"},
    "training": {*GROUND, "config", "kernels", "data", "backbone", "methods"},
    "runner": {*GROUND, "config", "data", "backbone", "methods", "training"},
    "study": {*GROUND, "config", "papers", "data", "runner"},
    "lifecycle": {*GROUND, "config", "data", "backbone", "methods", "training", "runner", "study"},
    "report": {*GROUND, "config", "papers"},
    "notebook": {*GROUND, "config", "runner", "study", "report"},
    "commands": {*GROUND, "config", "papers", "training", "runner", "study", "lifecycle", "report"},
    "cli": {"commands"},
    "__main__": {"cli"},
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names of the project's modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("peftbench."))
        elif isinstance(node, ast.ImportFrom) and node.module == "peftbench":
            yield from (f"peftbench.{name.name}" for name in node.names if not name.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("peftbench."):
            yield str(node.module)


def whole_names(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports from the project, each taken as a module and as a name in one."""
    yield from imports(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room(path: Path) -> str:
    """The folder of a file, or the file's own name at the top."""
    inside = path.relative_to(ROOT)
    return inside.parts[0].removesuffix(".py")


def edges() -> dict[str, set[str]]:
    """Every room -> the rooms that its files import."""
    imported: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for path in ROOT.rglob("*.py"):
        if path != ROOT / "__init__.py":
            imported[room(path)] |= {name.split(".")[1] for name in imports(path)} - {room(path)}
    return imported


def picture() -> str:
    """The rooms and their imports as a Mermaid graph; an import that others imply is left out."""
    direct = edges()
    reached: dict[str, set[str]] = {}
    for name in ALLOWED:  # from the ground up
        reached[name] = direct[name].union(*(reached[below] for below in direct[name]))
    lines = [
        f"  {name} --> {below}"
        for name in reversed(ALLOWED)
        for below in reversed(ALLOWED)
        if below in direct[name] and not any(below in reached[between] for between in direct[name])
    ]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def test_no_import_points_upward() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(ROOT.rglob("*.py"))
        if path != ROOT / "__init__.py"
        for name in imports(path)
        if (target := name.split(".")[1]) != room(path) and target not in ALLOWED[room(path)]
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Wherever in a file an import stands."""
    names = {
        ".".join(("peftbench", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")
    }
    graph = {name: set(whole_names(path)) & set(names) - {name} for name, path in names.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_picture_in_the_design_is_drawn_from_the_code() -> None:
    """`python tests/test_layout.py` prints it."""
    assert picture() in (ROOT.parent / "docs" / "design.md").read_text(encoding="utf-8")
    assert len(ALLOWED) < 20


def test_the_list_of_edges_has_no_circle_and_no_room_that_is_gone() -> None:
    order = list(ALLOWED)
    for name, below in ALLOWED.items():
        assert all(order.index(other) < order.index(name) for other in below), name
    assert {room(path) for path in ROOT.rglob("*.py")} - {"__init__"} == set(ALLOWED)


WHOLE_CELLS = {  # what may be handed a whole Cell: what composes the pieces, what executes one, what names its folder
    "runner/run.py": {"run", "learner_of", "objective_of", "tokenizing"},
    "runner/counts.py": {"count_cell", "count_resolved", "kept_bounds", "_attached"},
    "runner/recording.py": {"record_of", "delta_facts", "cell_name"},
    "runner/budgets.py": {"resolve"},
    "runner/chosen.py": {"chosen"},
    "runner/later_predictions.py": {"predict"},
    "runner/backbone.py": {"make_low_rank"},
    "runner/masked.py": {"make_masked"},
    "data/rows.py": {"rows_of"},
    "lifecycle/port_training.py": {"_found"},
}


def test_below_a_run_nothing_takes_a_whole_cell() -> None:
    taken: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        if room(path) not in ("runner", "training", "backbone", "methods", "data", "lifecycle"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if any(one.annotation and "Cell" in names(one.annotation) for one in arguments):
                    taken.setdefault(path.relative_to(ROOT).as_posix(), set()).add(getattr(node, "name", "lambda"))
    assert taken == WHOLE_CELLS


def names(annotation: ast.AST) -> set[str]:
    """The plain names in an annotation."""
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}


FOREIGN = {"_attn_implementation", "_exit", "_run_exitfuncs", "_parent_process", "_tokenizer"}  # of other packages


def private(node: ast.AST) -> str | None:
    """The private name of somebody else that a node uses, as an attribute, an import or a word for monkeypatch."""
    name: str | None = None
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
        name = node.attr
    elif isinstance(node, ast.ImportFrom):
        name = next((one.name for one in node.names if one.name.startswith("_")), None)
    elif isinstance(node, ast.Call) and "attr" in ast.unparse(node.func):
        words = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        name = next((word for word in words if word.rpartition(".")[2].startswith("_")), None)
    found = name is not None and name.startswith("_") and not name.startswith("__") and name not in FOREIGN
    return name if found else None


def test_no_test_and_no_script_uses_a_private_name() -> None:
    paths = [*sorted((ROOT.parent / "tests").rglob("*.py")), *sorted((ROOT.parent / "scripts").rglob("*.py"))]
    used = [
        f"{path.name}:{getattr(node, 'lineno', 0)}: {name}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (name := private(node)) is not None
    ]
    assert used == []


def prints(path: Path) -> list[str]:
    """Where a file prints or takes hold of the terminal's streams, as "file:line"."""
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Name) and node.id == "print")
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"))
    ]


def test_below_the_commands_only_warn_prints() -> None:
    below = [path for path in sorted(ROOT.rglob("*.py")) if room(path) not in ("commands", "cli", "__main__")]
    found = [place for path in below for place in prints(path)]
    assert {place.partition(":")[0] for place in found} == {"ground/errors.py"}
    assert len(found) == 2, found  # print(..., file=sys.stderr)


def test_below_studies_nothing_knows_hydra() -> None:
    """Cells are asked for as configurations, and run as frozen dataclasses."""
    words = ("import hydra", "from hydra", "import omegaconf", "from omegaconf")
    knowing = {room(path) for path in ROOT.rglob("*.py") if any(word in path.read_text() for word in words)}
    assert knowing <= {"config", "study", "commands"}


if __name__ == "__main__":
    print(picture())
