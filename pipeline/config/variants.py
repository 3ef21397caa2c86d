"""The variants that the pipeline adds to those of the method: where images come from, what they are judged in.

As in `ldcvae.variants`, one record each; records refer to their code by `lazy`, so that a configuration is checked
without importing it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldcvae.registry import Registry, lazy

if TYPE_CHECKING:
    from pipeline.config.sections import Config
    from pipeline.judge.extractors import Extractor
    from pipeline.prepare.sources import Source
    from pipeline.store.run import Run

__all__ = ["EXTRACTORS", "SOURCES", "FeatureExtractor", "ImageSource"]


@dataclass(frozen=True)
class ImageSource:
    """A kind of place that images come from.

    Attributes:
        name: how `data.source` calls it.
        about: what it is, in a few words.
        find: configuration -> the source, found and described but not yet read; raises ConfigError or PipelineError.
        needs: key of `data` that must be given, and how; None if there is none.
        reads: which of `data.name` and `data.path` it reads; the others are refused, lest a user who forgets
            `data.source` be given another source's images.
    """

    name: str
    about: str
    find: Callable[[Config], Source]
    needs: tuple[str, str] | None = None
    reads: tuple[str, ...] = ("name", "path")


_PATH = ("path", "data.path=FOLDER_OR_URL")
_FIND = "pipeline.prepare.sources"

SOURCES: Registry[ImageSource] = Registry("source")
SOURCES.register(
    ImageSource("digits", "scikit-learn's 1,797 bundled 8x8 scans", lazy(f"{_FIND}:find_digits"), reads=())
)
SOURCES.register(
    ImageSource(
        "torchvision",
        "a set by name",
        lazy(f"{_FIND}:find_torchvision"),
        ("name", "data.name, e.g. data.name=MNIST"),
    )
)
SOURCES.register(ImageSource("idx", "a folder of MNIST-style IDX files", lazy(f"{_FIND}:find_idx"), _PATH, ("path",)))
SOURCES.register(
    ImageSource("folder", "image files, sub-folders are labels", lazy(f"{_FIND}:find_folder"), _PATH, ("path",))
)
SOURCES.register(
    ImageSource("parquet", "files with an image column", lazy(f"{_FIND}:find_parquet"), _PATH, ("path",))
)


@dataclass(frozen=True)
class FeatureExtractor:
    """A kind of features that images are judged in.

    Attributes:
        name: how `evaluate.extractor` calls it.
        build: run -> the extractor, on the CPU; raises ConfigError where it does not fit the data.
        figure: what a Fréchet distance in its features is called; FID is Inception's only.
        needs: package that it imports, and how to get it; None if it comes with ours.
    """

    name: str
    build: Callable[[Run], Extractor]
    figure: str
    needs: tuple[str, str] | None = None


_BUILD = "pipeline.judge.extractors"

EXTRACTORS: Registry[FeatureExtractor] = Registry("extractor")
EXTRACTORS.register(
    FeatureExtractor("classifier", lazy("pipeline.judge.classifier:stored_classifier"), "FD-classifier")
)
EXTRACTORS.register(
    FeatureExtractor(
        "inception", lazy(f"{_BUILD}:inception"), "FID", ("torch_fidelity", "pip install 'ldcvae[inception]'")
    )
)
EXTRACTORS.register(FeatureExtractor("random", lazy(f"{_BUILD}:random_convolutions"), "FD-random"))
EXTRACTORS.register(FeatureExtractor("file", lazy(f"{_BUILD}:from_file"), "FD-<file's name>"))
