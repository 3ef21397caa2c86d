"""Pictures that an earlier stage has written, read again for another page."""

from pipeline.judge.pages.pictures import Picture
from pipeline.store.run import Run

__all__ = ["stored_pictures"]


def stored_pictures(run: Run) -> dict[str, Picture]:
    """The pictures of a finished search, by name; none without a search.

    Raises:
        PipelineError: naming one that is missing or damaged.
    """
    if not run.has("tune"):
        return {}
    manifest = run.manifest("tune")

    pictures = {}
    for name, alt in manifest.info["pictures"].items():
        dark = f"tune/{name}-dark.png"
        both = run.output("tune", f"tune/{name}.png"), run.output("tune", dark) if dark in manifest.outputs else None
        pictures[name] = Picture(f"search-{name}", *both, alt)
    return pictures
