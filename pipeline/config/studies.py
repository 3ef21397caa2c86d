"""The schema's sections for studies: the search (`tune`) and the comparison (`compare`)."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.base import Count, Positive, Section

__all__ = ["AUTOENCODERS", "GENERATORS", "CompareConfig", "Distribution", "TuneConfig"]


class Distribution(Section):
    """What a searched key is drawn from; `pipeline.space` checks it together with the key."""

    type: Literal["loguniform", "uniform", "int", "logint", "choice"]
    low: float | int | None = Field(None, description="least value, included")
    high: float | int | None = Field(None, description="largest value, included")
    step: int | None = Field(None, description="type int: distance between values")
    values: list[Any] | None = Field(None, description="type choice: the values")

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(name, value) for name, value in super().__repr_args__() if value is not None]


_SAMPLER_SPACE = {
    "sampler.bandwidths.smallest": Distribution(type="loguniform", low=0.05, high=0.2),
    "sampler.bandwidths.largest": Distribution(type="loguniform", low=0.25, high=1.0),
    "sampler.bandwidths.count": Distribution(type="int", low=1, high=4),
    "sampler.particles": Distribution(type="logint", low=128, high=1024),
    "sampler.posterior_noise": Distribution(type="uniform", low=0.5, high=1.0),
    "sampler.learning_rate": Distribution(type="loguniform", low=3e-4, high=3e-3),
}


class TuneConfig(Section):
    """Hyperparameter search."""

    space: dict[str, Distribution] = Field(
        _SAMPLER_SPACE,
        description="searched keys of model, train and sampler, each with {type: loguniform|uniform|int|logint, low, "
        "high} or {type: choice, values}; sampler.bandwidths.smallest, .largest and .count make a geometric ladder",
    )
    start_from: list[dict[str, Any]] = Field(
        [], description="points to evaluate after the config's own values, each as {dotted key: value}"
    )
    num_samples: Count = Field(20, description="trials in all; raising it goes on with the study")
    metrics: list[
        Literal["fd", "kid", "precision", "recall", "density", "coverage", "reconstruction", "images_per_s"]
    ] = Field(
        ["fd"], min_length=1, description="objectives on validation images; of several the Pareto front is reported"
    )
    sampler: Literal["tpe", "gp", "cmaes", "random", "qmc"] = Field("tpe", description="Optuna's sampler")
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="asha: stop trials that lag behind (one metric only); none: train all to the end"
    )
    reports: Annotated[int, Field(ge=1, le=1000)] = Field(
        8, description="validations and checkpoints of each training phase of a trial"
    )
    num_images: Annotated[int, Field(ge=50)] = Field(2000, description="generated images per draw of a validation")
    draws: Count = Field(3, description="draws, with fixed seeds, that a finished trial's figures are means of")
    max_concurrent: Count | None = Field(None, description="trials at a time; null: as many as the cluster holds")
    cpus_per_trial: Count = Field(1, description="CPUs and threads of a trial with one worker")
    gpus_per_trial: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs of a trial with one worker, 0.25 for four trials a GPU; null: 1 where there are GPUs"
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(2, description="lost processes before a trial counts as failed")
    study_url: str | None = Field(
        None,
        description="database of the Optuna study, e.g. postgresql://$PGUSER:$PGPASSWORD@host/optuna, $NAME from the "
        "environment; null: the journal tune/study.log",
    )


# Name -> what its one knob is, or None. The candidates of each are in `CompareConfig`; docs/compare.md explains them.
AUTOENCODERS: dict[str, str | None] = {
    "vae": None,
    "beta_vae": "beta, weight of the KL",
    "wae_mmd": "weight of the MMD penalty",
    "rae_l2": "weight of the latents' squared norm",
    "vampprior": "pseudo-inputs",
    "ldc_elbo": "factor of lambda, train.inverse_temperature",
    "ldc_svgd": "factor of lambda, train.inverse_temperature",
}
GENERATORS: dict[str, str | None] = {
    "prior": None,
    "gaussian": None,
    "gmm": None,
    "gmm_tuned": "components",
    "two_stage": "learning rate",
    "maf": "learning rate",
    "flow_matching": "learning rate",
    "langevin": "least kernel width, in nearest-neighbour distances",
    "hmc": "least kernel width, in nearest-neighbour distances",
    "stein": "factor of the bandwidths",
    "score_difference": "factor of the bandwidths",
    "drift": "factor of the temperatures",
    "encoder": None,
}
_COMPONENTS = ("gmm_tuned", "vampprior")  # knobs that count something


def _candidates(known: dict[str, str | None]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"must be {{name: [candidates]}} with names among {', '.join(known)}")
        for name, candidates in value.items():
            if name not in known:
                raise ValueError(f"{name}: unknown; choose among {', '.join(known)}")
            if not isinstance(candidates, list) or not all(
                isinstance(number, int | float) and 0 < number < 1e9 for number in candidates
            ):
                raise ValueError(f"{name}: must be a list of positive numbers, got {candidates!r}")
            if known[name] is None and candidates:
                raise ValueError(f"{name}: has nothing to choose, so it must be [], got {candidates!r}")
            if known[name] is not None and not candidates:
                raise ValueError(f"{name}: needs at least one candidate ({known[name]}), got []")
            if name in _COMPONENTS and any(number != int(number) for number in candidates):
                raise ValueError(f"{name}: must be whole numbers ({known[name]}), got {candidates!r}")
        return value

    return BeforeValidator(check)


class CompareConfig(Section):
    """Comparison of autoencoders and latent generators; a knob's value is chosen among its candidates."""

    autoencoders: Annotated[dict[str, list[float]], _candidates(AUTOENCODERS), Field(min_length=1)] = Field(
        {
            "vae": [],
            "beta_vae": [0.25, 4.0, 16.0],
            "wae_mmd": [1.0, 10.0, 100.0],
            "rae_l2": [0.01, 0.1, 1.0],
            "vampprior": [50.0, 100.0],
            "ldc_elbo": [0.25, 1.0, 4.0],
            "ldc_svgd": [0.25, 1.0, 4.0],
        },
        description="autoencoders compared, each with the candidates of its knob; chosen by FD of GMM samples to "
        "validation images. ldc_elbo and ldc_svgd are LDC-VAE's with train.particles latents per image, the others "
        "have one",
    )
    generators: Annotated[dict[str, list[float]], _candidates(GENERATORS), Field(min_length=1)] = Field(
        {
            "prior": [],
            "gaussian": [],
            "gmm": [],
            "gmm_tuned": [20.0, 50.0, 100.0],
            "two_stage": [5e-4, 1e-3, 2e-3],
            "maf": [5e-4, 1e-3, 2e-3],
            "flow_matching": [5e-4, 1e-3, 2e-3],
            "langevin": [0.03, 0.1, 0.2],
            "hmc": [0.03, 0.1, 0.2],
            "stein": [0.7, 1.0, 1.4],
            "score_difference": [0.7, 1.0, 1.4],
            "drift": [0.7, 1.0, 1.4],
            "encoder": [],
        },
        description="generators on each autoencoder, each with the candidates of its knob; chosen by FD to "
        "validation images",
    )
    only: dict[str, list[str]] = Field(
        {}, description="generators on an autoencoder where it is not all, e.g. {vae: [prior, gmm, drift]}"
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
    cpus_per_cell: Count = Field(1, description="CPUs and threads of a cell, one training or one generator")
    gpus_per_cell: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs of a cell, 0.25 for four cells a GPU; null: 1 where there are GPUs"
    )

    @model_validator(mode="after")
    def _names_are_compared(self) -> "CompareConfig":
        for autoencoder, generators in self.only.items():
            if autoencoder not in self.autoencoders:
                raise ValueError(
                    f"only.{autoencoder}: is not among compare.autoencoders: {', '.join(self.autoencoders)}"
                )
            if not generators or (unknown := [name for name in generators if name not in self.generators]):
                wrong = ", ".join(unknown) if generators else "an empty list"
                raise ValueError(
                    f"only.{autoencoder}: {wrong} is not among compare.generators: {', '.join(self.generators)}"
                )
        return self

    def generators_of(self, autoencoder: str) -> list[str]:
        """The generators that are compared on an autoencoder."""
        return [name for name in self.generators if name in self.only.get(autoencoder, self.generators)]
