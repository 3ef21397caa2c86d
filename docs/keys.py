"""Writes docs/configuration.md, every key of the schema in a table: python docs/keys.py."""

from pathlib import Path

from pipeline.config.load import describe_keys
from pipeline.config.sections import Config

__all__ = ["page"]

_HEAD = """# Configuration: every key

A run's configuration is a YAML file (`--config FILE`, `configs/` has some), over which `key=value` on the command
line wins; what neither says has the default here. Values are YAML; in a shell, quote those with brackets or spaces:
`'sampler.bandwidths=[0.1, 0.3]'`. All mistakes are told in one message before anything works. A stage's own keys are
in its `--help` too. The resolved configuration lies in the run's folder as `config.yaml`; as `--config` of another
command it repeats the run.

This page is made from the schema by `python docs/keys.py`.
"""
_TOP = "The run"


def page() -> str:
    """The page in Markdown."""
    parts, section = [_HEAD], None
    about = {name: (field.annotation.__doc__ or "").splitlines()[0] for name, field in Config.model_fields.items()
             if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields")}  # fmt: skip
    for name, kind, default, description in describe_keys():
        here = name.partition(".")[0] if "." in name else _TOP
        if here != section:
            section = here
            title = f"`{section}`" if section in about else section
            parts.append(f"\n## {title}\n\n{about.get(section, 'Its name, its place and its seed.')}\n")
            parts.append("| key | default | values | meaning |\n|---|---|---|---|")
        cells = [f"`{name}`", f"`{default}`", f"`{kind}`".replace("|", "\\|"), description.replace("|", "\\|")]
        parts.append(f"| {' | '.join(cells)} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(page(), "utf-8")
