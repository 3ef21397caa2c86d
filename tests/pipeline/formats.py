"""Format numbers and the sources behind them: whether code has changed since its number was last looked at.

What a stage or a cell has made is kept until what it depends on changes, and code is not among that. So each has a
number, which is raised by hand when the code makes something else than before, and `tests/data/formats.json` says for
which sources the number was last judged right. `python tests/pipeline/formats.py --accept` writes that file anew.

Sources of a stage are its module and all that this imports, by way of `lazy` references too, with other stages left
out: those have numbers of their own. They are hashed as syntax trees, without comments, docstrings and the numbers.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from source_tree import MODULES, ROOT, imports_of, nodes

KEPT = ROOT / "tests/data/formats.json"
ACCEPT = "python tests/pipeline/formats.py --accept"
NUMBERS = {"FORMAT", "AUTOENCODER_FORMAT", "DECODER_FORMAT", "GENERATOR_FORMAT", "CLASSIFIER_FORMAT"}
STAGES = ("prepare", "train", "sample", "evaluate", "report", "tune", "compare")
CELLS = ("pipeline.compare.autoencoders", "pipeline.compare.judge", "pipeline.compare.decoders")
FITTED = ("ldcvae.rivals.fits", "ldcvae.rivals.objectives")
TEMPLATES = {path.name: path for path in (ROOT / "pipeline").rglob("*.j2")}

# Modules that decide how a stage is carried out or what is asked of it, not what comes out for the same
# configuration: values of the configuration are in the fingerprints, and one store reads files of any version.
ASIDE = (
    "pipeline.config",
    "pipeline.remote",
    "pipeline.store.folder",
    "pipeline.store.lease",
    "pipeline.store.manifest",
    "pipeline.store.run",
    "pipeline.store.schema",
    "ldcvae.registry",
)


class Part(NamedTuple):
    """Something that is made and kept.

    Attributes:
        module: where its number stands.
        number: name of the constant.
        roots: modules that make it; what they import is behind it too.
        aside: modules, with all below them, that are not behind it although something names them.
    """

    module: str
    number: str
    roots: tuple[str, ...]
    aside: tuple[str, ...] = ()


def _stage(name: str, *aside: str) -> Part:
    others = tuple(f"pipeline.{other}" for other in STAGES if other != name)
    return Part(f"pipeline.{name}.stage", "FORMAT", (f"pipeline.{name}.stage",), (*others, *aside))


PARTS = {
    "prepare": _stage("prepare"),
    # These are about LDC-VAE alone, though the registry that its networks are in names the rivals too.
    "train": _stage("train", "ldcvae.rivals"),
    "sample": _stage("sample", "ldcvae.rivals"),
    "evaluate": _stage("evaluate"),
    "report": _stage("report"),
    "tune": _stage("tune", *FITTED),
    # Of its cells it reads the records; they are computed under numbers of their own.
    "compare": _stage("compare", *FITTED, *CELLS),
    "autoencoder cell": Part("pipeline.compare.cells", "AUTOENCODER_FORMAT", CELLS[:1], FITTED[:1]),
    "generator cell": Part("pipeline.compare.cells", "GENERATOR_FORMAT", CELLS[1:2]),
    "decoder cell": Part("pipeline.compare.cells", "DECODER_FORMAT", CELLS[2:], FITTED),
    "classifier": Part(
        "pipeline.judge.classifier", "CLASSIFIER_FORMAT", ("pipeline.judge.classifier",), ("ldcvae.rivals",)
    ),
}


def _is_text(node: ast.AST) -> bool:
    """A docstring, of an attribute too."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in NUMBERS


def _plain(value: Any) -> Any:
    """A syntax tree as lists: without what is empty, so that Pythons whose trees have other fields agree."""
    if isinstance(value, ast.AST):
        if isinstance(value, ast.JoinedStr):  # 3.12.1 ends some with an empty constant
            value = ast.JoinedStr([part for part in value.values if ast.unparse(part) != "''"])
        fields = [(name, _plain(part)) for name, part in ast.iter_fields(value) if name not in ("ctx", "kind")]
        return [type(value).__name__, *([name, part] for name, part in sorted(fields) if part not in (None, []))]
    if isinstance(value, list):
        return [_plain(part) for part in value if not _is_text(part) and not _is_number(part)]
    return None if value is None else repr(value)


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def digest_of_code(code: str) -> str:
    """Hash of what code does."""
    return _digest(json.dumps(_plain(ast.parse(code))))


@cache
def _digest_of(file: str) -> str:
    content = (ROOT / file).read_text("utf-8")
    return digest_of_code(content) if file.endswith(".py") else _digest(content)


@cache
def _named_in(module: str) -> frozenset[str]:
    """What a module imports when it runs, or names in a `lazy` reference; templates that it names."""
    found = {one.target for one in imports_of(module) if not one.typing and one.target in MODULES}
    for node, _, _ in nodes(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(":")[0]  # of `module:name`, or of a module that is put before a name
            found |= {name} & (MODULES.keys() | TEMPLATES.keys())
    # A package's own module says what there is in it; the version is in `ldcvae`'s.
    return frozenset(name for name in found if name in TEMPLATES or MODULES[name].name != "__init__.py")


def _below(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{prefix}.") for prefix in prefixes)


def files_behind(part: Part) -> list[str]:
    """Paths of a part's sources, from the project's root."""
    seen: set[str] = set()
    waiting = list(part.roots)
    while waiting:
        name = waiting.pop()
        if name in seen or _below(name, (*ASIDE, *part.aside)):
            continue
        seen.add(name)
        if name in TEMPLATES:
            text = TEMPLATES[name].read_text("utf-8")
            waiting += [one for one in TEMPLATES if f'"{one}"' in text]
        else:
            waiting += _named_in(name)
    paths = (TEMPLATES.get(name) or MODULES[name] for name in seen)
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def number_of(part: Part) -> int:
    """The format number as the module has it.

    Raises:
        LookupError: if it has none, or none in plain figures.
    """
    for node in ast.parse(MODULES[part.module].read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == part.number:
            return int(ast.literal_eval(node.value))
    raise LookupError(f"{part.module} has no {part.number}")


def current() -> dict[str, dict[str, Any]]:
    """What `formats.json` would hold now: part -> {"format": number, "sources": {file: hash}}."""
    return {
        name: {"format": number_of(part), "sources": {file: _digest_of(file) for file in files_behind(part)}}
        for name, part in PARTS.items()
    }


def faults(kept: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> Iterator[str]:
    """One message for each part whose number may be wrong, or is not noted yet."""
    for name, made in now.items():
        before = kept.get(name, {"format": 0, "sources": {}})
        changed = sorted(
            file
            for file in before["sources"].keys() | made["sources"].keys()
            if before["sources"].get(file) != made["sources"].get(file)
        )
        old, new, part = before["format"], made["format"], PARTS[name]
        where = f"{part.number} in {MODULES[part.module].relative_to(ROOT).as_posix()}"
        if new < old:
            yield f"{name}: {where} fell from {old} to {new}: what was kept under {new} once would count as made now"
        elif new > old:
            yield f"{name}: {where} is {new} now, noted is {old}: `{ACCEPT}`"
        elif changed:
            yield (
                f"{name}: {', '.join(changed)} changed and {where} is still {new}: raise it if outputs differ for "
                f"the same configuration, then in any case `{ACCEPT}`"
            )
    for name in sorted(kept.keys() - now.keys()):
        yield f"{name}: noted, but there is no such part: `{ACCEPT}`"


def read_kept() -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
    return content


def main(arguments: list[str]) -> int:
    """Say what is to be looked at; with `--accept`, note the sources as they are. Returns the exit status."""
    told = list(faults(read_kept(), current()))
    print("\n".join(told) or "formats.json is up to date")
    if "--accept" not in arguments:
        return int(bool(told))
    KEPT.write_text(json.dumps(current(), indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
