"""The schema's section for the search, `tune`."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from ldcvae.training.settings import Count
from pipeline.config.base import Section

__all__ = ["Distribution", "TuneConfig"]


class Distribution(Section):
    """What a searched key is drawn from; `pipeline.tune.space` checks it together with the key."""

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
        description="searched keys of model, train, decoder and sampler, each with {type: loguniform|uniform|int|"
        "logint, low, high} or {type: choice, values}; sampler.bandwidths.smallest, .largest and .count make a "
        "geometric ladder",
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
