"""The order of the modules, drawn from their syntax trees: what may import what, and how large they may grow."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest
from source_tree import MODULES, ROOT, Import, imports_of, nodes

FLOORS = ("ldcvae", "config", "store", "remote", "judge", "stage")  # from the ground up
STAGES = {"compare", "evaluate", "prepare", "report", "run", "sample", "train", "tune", "verify", "__main__"}
# What a stage may take of other stages, beside its own command line.
OF_OTHERS = {
    "run": {"prepare", "train", "sample", "evaluate", "report"},
    "tune": {"prepare", "train"},
    "compare": {"prepare"},
}
# Types of what its records refer to: a type checker reads them, nothing imports them.
TYPES_ONLY = "pipeline.config.variants"
MOST_LINES, MOST_ENTRIES = 320, 13  # nine stages and four floors

IMPORTS = [found for module in MODULES for found in imports_of(module)]


def part(module: str) -> str:
    """The entry of `pipeline` that a module belongs to; empty for the package itself."""
    return f"{module}.".split(".")[1]


def floor(module: str) -> int | None:
    """How high a module stands; None for what is not of this project, and for `pipeline` itself, which is empty."""
    if module.split(".")[0] == "ldcvae":
        return 0
    if module.split(".")[0] != "pipeline" or module == "pipeline":
        return None
    return FLOORS.index("stage" if part(module) in STAGES else part(module))


def test_the_trees_were_read():
    assert len(MODULES) > 80
    assert len(IMPORTS) > 500
    assert Import("pipeline.tune.stage", "pipeline.prepare", True, False, 14)._replace(line=0) in {
        found._replace(line=0) for found in IMPORTS
    }
    assert any(found.target == "pipeline.tune.search" and not found.top for found in IMPORTS)  # in a function
    assert any(found.typing and found.importer == TYPES_ONLY for found in IMPORTS)


def test_nodes_are_told_apart():
    code = """
import one
if TYPE_CHECKING:
    import two
else:
    import three
def function():
    import four
class Klass:
    import five
    def method(self):
        import six
try:
    import seven
except ImportError:
    import eight
"""
    found = {
        node.names[0].name: (top, typing)
        for node, top, typing in nodes(ast.parse(code))
        if isinstance(node, ast.Import)
    }
    on_import = dict.fromkeys(("one", "three", "five", "seven", "eight"), (True, False))
    assert found == on_import | {"two": (False, True), "four": (False, False), "six": (False, False)}


def test_the_library_knows_nothing_of_the_pipeline_and_of_what_that_is_built_on():
    forbidden = {"ray", "fsspec", "pydantic", "pipeline"}
    assert [
        str(one) for one in IMPORTS if one.importer.startswith("ldcvae") and one.target.split(".")[0] in forbidden
    ] == []


def test_no_floor_imports_a_higher_one():
    known = {part(module) for module in MODULES if module.startswith("pipeline.")}
    assert known == STAGES | set(FLOORS[1:-1])  # a new folder has to find its place here
    wrong = []
    for one in IMPORTS:
        importer, target = floor(one.importer), floor(one.target)
        if importer is None or target is None or (one.typing and one.importer == TYPES_ONLY):
            continue
        if target > importer:
            wrong.append(str(one))
    assert wrong == []


def test_stages_leave_each_other_alone():
    wrong = []
    for one in IMPORTS:
        importer, target = part(one.importer), part(one.target)
        if not one.importer.startswith("pipeline.") or importer == target or not {importer, target} <= STAGES:
            continue
        command = one.target == "pipeline.__main__" and (
            one.importer in ("pipeline.run", "pipeline.verify") or one.importer.endswith(".__main__")
        )
        if not command and target not in OF_OTHERS.get(importer, set()):
            wrong.append(str(one))
    assert wrong == []


def test_the_pipeline_has_few_entries():
    aside = {"__init__.py", "__main__.py", "__pycache__"}
    entries = sorted(path.name for path in (ROOT / "pipeline").iterdir() if path.name not in aside)
    assert len(entries) <= MOST_ENTRIES, entries


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_long(module):
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= MOST_LINES


def test_no_modules_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for one in IMPORTS:
        if one.top and one.target in MODULES:
            graph[one.importer].add(one.target)
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imported in a circle: {' imported by '.join(error.args[1])}")
    assert set(order) == set(MODULES)
