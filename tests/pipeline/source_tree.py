"""The project's modules and what they import, drawn from their syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Import(NamedTuple):
    """One import.

    Attributes:
        importer: module that it stands in.
        target: module that is imported.
        top: whether it happens when the importer is imported, so neither in a function nor for a type checker only.
        typing: whether it stands under `if TYPE_CHECKING`.
        line: where it stands.
    """

    importer: str
    target: str
    top: bool
    typing: bool
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.target}"


def files() -> list[Path]:
    return sorted(path for name in ("ldcvae", "pipeline") for path in (ROOT / name).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in files()}


def nodes(tree: ast.AST, top: bool = True, typing: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Every node below, with whether it runs on import and whether it is for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        yield node, top and not typing, typing
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for part in node.body:
                yield part, False, True
                yield from nodes(part, False, True)
            for part in node.orelse:
                yield part, top, typing
                yield from nodes(part, top, typing)
        else:
            yield from nodes(node, top and not inside, typing)


def imports_of(module: str) -> Iterator[Import]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node, top, typing in nodes(ast.parse(path.read_text("utf-8"))):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import module` imports the module, anything else what the source itself holds.
            targets = [f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in MODULES]
            if len(targets) < len(node.names):
                targets.append(source)
        yield from (Import(module, target, top, typing, node.lineno) for target in targets)
