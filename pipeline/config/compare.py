"""The schema's section for the comparison, `compare`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ldcvae.registry import Registry
from ldcvae.training.settings import Count, Positive
from ldcvae.variants import AUTOENCODERS, GENERATORS, Autoencoder, Generator
from pipeline.config.base import Section

__all__ = ["CompareConfig"]


def _candidates(registry: Registry[Autoencoder] | Registry[Generator]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"must be {{name: [candidates]}} with names among {', '.join(registry)}")
        for name, candidates in value.items():
            if name not in registry:
                raise ValueError(f"{name}: unknown; choose among {', '.join(registry)}")
            record = registry[name]
            if isinstance(record, Generator) and "compare" not in record.stages:
                raise ValueError(f"{name}: is the run's own net; `compare` trains one by each direction")
            if not isinstance(candidates, list) or not all(
                isinstance(number, int | float) and 0 < number < 1e9 for number in candidates
            ):
                raise ValueError(f"{name}: must be a list of positive numbers, got {candidates!r}")
            if record.knob is None and candidates:
                raise ValueError(f"{name}: has nothing to choose, so it must be [], got {candidates!r}")
            if record.knob is not None and not candidates:
                raise ValueError(f"{name}: needs at least one candidate ({record.knob}), got []")
            if record.whole and any(number != int(number) for number in candidates):
                raise ValueError(f"{name}: must be whole numbers ({record.knob}), got {candidates!r}")
        return value

    return BeforeValidator(check)


class CompareConfig(Section):
    """Comparison of autoencoders and latent generators; a knob's value is chosen among its candidates."""

    autoencoders: Annotated[dict[str, list[float]], _candidates(AUTOENCODERS), Field(min_length=1)] = Field(
        {name: list(record.candidates) for name, record in AUTOENCODERS.items()},
        description="autoencoders compared, each with the candidates of its knob; chosen by FD of GMM samples to "
        "validation images. ldc_elbo and ldc_svgd are LDC-VAE's with train.particles latents per image, the others "
        "have one",
    )
    generators: Annotated[dict[str, list[float]], _candidates(GENERATORS), Field(min_length=1)] = Field(
        {name: list(record.candidates) for name, record in GENERATORS.items() if "compare" in record.stages},
        description="generators on each autoencoder, each with the candidates of its knob; chosen by FD to "
        "validation images",
    )
    only: dict[str, list[str]] = Field(
        {}, description="generators on an autoencoder where it is not all, e.g. {vae: [prior, gmm, drift]}"
    )
    decoder: Literal["none", "all", "both"] = Field(
        "none",
        description="phase decoder (section decoder): on no autoencoder, on all of them, or all without and with it",
    )
    seeds: Annotated[int, Field(ge=1, le=100)] = Field(
        3, description="trainings of everything; raising it adds to them"
    )
    selection_images: Annotated[int, Field(ge=50)] = Field(
        2000, description="generated images a candidate is judged by"
    )
    stein_bandwidths: Annotated[list[Positive], Field(min_length=1, max_length=16)] = Field(
        [0.5, 1.0, 2.0], description="sampler.bandwidths of generator stein, before its factor"
    )
    drift_temperatures: Annotated[list[Positive], Field(min_length=1, max_length=16)] = Field(
        [0.12, 0.3, 0.6], description="sampler.bandwidths of generator drift, before its factor"
    )
    euler_steps: Count = Field(50, description="passes of the flow matching generator")
    temperatures: Annotated[list[Annotated[float, Field(gt=0, le=4)]], Field(min_length=1, max_length=16)] = Field(
        [1.0],
        description="factors of the noise that generators start from, chosen by FD to validation images for each "
        "generator and seed; chains and bounds have 1",
    )
    cpus_per_cell: Count = Field(1, description="CPUs and threads of a cell, one training or one generator")
    gpus_per_cell: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs of a cell, 0.25 for four cells a GPU; null: 1 where there are GPUs"
    )

    later = frozenset({"decoder", "temperatures"})

    def conflict(self) -> str:
        """Rows of `only` that are not compared."""
        for autoencoder, generators in self.only.items():
            if autoencoder not in self.autoencoders:
                return f"only.{autoencoder}: is not among compare.autoencoders: {', '.join(self.autoencoders)}"
            if not generators or (unknown := [name for name in generators if name not in self.generators]):
                wrong = ", ".join(unknown) if generators else "an empty list"
                return f"only.{autoencoder}: {wrong} is not among compare.generators: {', '.join(self.generators)}"
        return ""

    def generators_of(self, autoencoder: str) -> list[str]:
        """The generators that are compared on an autoencoder."""
        return [name for name in self.generators if name in self.only.get(autoencoder, self.generators)]
