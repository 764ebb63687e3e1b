"""Every key of every yaml is explained: by a comment on its line or above it, there or in a file that it builds on."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from peftbench.config import compose

ROOT = compose.conf_dir()
YAMLS = sorted(
    path.relative_to(ROOT) for path in ROOT.rglob("*.yaml") if path.parent.name not in ("paper", "local")
)  # a paper's figures are data
NO_SETTING = ("defaults", "_target_")
Key = tuple[str, ...]  # the words of a dotted key


def keys(text: str) -> Iterator[tuple[Key, int]]:
    """Every key of a yaml, however deep, and its line."""

    def inside(node: yaml.Node, above: Key) -> Iterator[tuple[Key, int]]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            yield (*above, key.value), key.start_mark.line
            yield from inside(value, (*above, key.value))

    return inside(yaml.compose(text, yaml.SafeLoader), ())


def own_comments(path: Path) -> dict[Key, str]:
    """What a file says of its keys: on their lines, on lines above that stand as far in, and in a list of words below
    a key ("#   word: what it is", as ("", word))."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    said: dict[Key, str] = {("", word): what for word, what in re.findall(r"^#   (\w+): (.*)$", text, re.MULTILINE)}
    for key, at in keys(text):
        on_it = re.search(r"\s# (.*)$", lines[at])
        above = re.match(r"( *)# (.*)$", lines[at - 1]) if at > 1 else None  # the first line says what the file is
        if on_it:
            said[key] = on_it[1]
        elif above and len(above[1]) == len(lines[at]) - len(lines[at].lstrip()):
            said[key] = above[2]
    return said


def comments(path: Path) -> dict[Key, str]:
    """The same with what the files that it builds on say; its own come first."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    bases = [word for word in raw.get("defaults", ()) if isinstance(word, str)]
    inherited: dict[Key, str] = {}
    for base in (path.with_name(f"{word}.yaml") for word in bases):
        inherited |= comments(base) if base.exists() else {}
    return inherited | own_comments(path)


def explained(key: Key, said: dict[Key, str]) -> bool:
    """Whether a key is no setting, is a group's name, is explained, or is a name in a mapping of "one -> another"."""
    if key[-1] in NO_SETTING or key[0] in NO_SETTING or ROOT.joinpath(*key).is_dir():
        return True
    names = any("->" in said.get(key[:depth], "") for depth in range(1, len(key)))
    return key in said or ("", key[-1]) in said or names


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_every_key_is_explained(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    said = comments(ROOT / path)
    assert text.startswith(("# ", "# @package")), "the first line says what this is"
    assert [".".join(key) for key, _ in keys(text) if not explained(key, said)] == []


def test_a_key_without_a_comment_is_found(tmp_path: Path) -> None:
    """Also inside others; a comment in another file of the same key does, one of another key does not."""
    (tmp_path / "base.yaml").write_text("# base\nrank: 8  # of each\npart:  # of it\n  deep: 1  # so deep\n")
    (tmp_path / "own.yaml").write_text(
        "# own\ndefaults: [base, _self_]\nrank: 4\nnew: 1\npart: {deep: 2, wide: 3}\nfiles: {a: b}  # split -> file\n"
    )
    said = comments(tmp_path / "own.yaml")
    found = [".".join(key) for key, _ in keys((tmp_path / "own.yaml").read_text()) if not explained(key, said)]
    assert found == ["new", "part.wide"]
