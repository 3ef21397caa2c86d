"""Runs a search: the study, the trials under Ray Tune, and what is written of them."""

import json
import logging
import os
import tempfile
import warnings
from typing import Any

import yaml

from ldcvae.metrics.reconstruction import reconstruction_error
from ldcvae.training.encode import encode_split
from pipeline import prepare, train
from pipeline.config.errors import StorageError
from pipeline.config.load import override
from pipeline.config.sections import Config
from pipeline.judge.doubts import require_neighbours
from pipeline.judge.figures import make_reference
from pipeline.judge.pages.pictures import Picture
from pipeline.remote.connect import connect
from pipeline.remote.hardware import grows, require_room, use_cuda
from pipeline.remote.internals import count_killed_trials_as_lost, keep_keys_out_of_runtime_environments
from pipeline.store.data.splits import split_images
from pipeline.store.folder import fingerprint
from pipeline.store.manifest import Manifest, at_format, say
from pipeline.store.model import load_model
from pipeline.store.run import Run
from pipeline.store.weights import FILES, decoder_parts, judge_parts
from pipeline.tune.space import SearchSpace, build_space
from pipeline.tune.trial import Shared, Trial, phases_of

__all__ = ["run"]

FORMAT = 8  # of trials and their figures: another one is another study; CONTRIBUTING.md says when to raise it

# Keys of `tune` that change how the search is carried out, not what a trial's figures mean.
_OPERATIONAL = {
    "start_from",
    "num_samples",
    "sampler",
    "scheduler",
    "max_concurrent",
    "cpus_per_trial",
    "gpus_per_trial",
    "max_failures",
    "study_url",
}
_SHOWN = ("fd", "kid", "precision", "recall", "coverage", "reconstruction", "images_per_s")


def _template(run: Run, space: SearchSpace, study: str) -> Trial:
    """What all trials share: the reference, and the autoencoder and encodings where only the sampler is searched."""
    shared, reference = None, make_reference(run, "validation", second=False)
    if space.only_sampler:
        model, validation = load_model(run), split_images(run, "validation")
        weights = {
            name: tensor for name, tensor in model.state_dict().items() if name.startswith(("encoder.", "decoder."))
        }
        error, held_out = reconstruction_error(model.reconstruct, validation), encode_split(model, validation)
        del validation  # one split in memory at a time
        shared = Shared(weights, encode_split(model, split_images(run, "train")), held_out, error)
    return Trial(run, study, 0, run.config.tune.cpus_per_trial, reference, shared)


def _resources(config: Config) -> tuple[dict[str, float], int]:
    """(Ray resources of a trial's own process, how many trials fit at a time)."""
    settings, workers = config.tune, config.train.least_workers
    cuda = use_cuda(config.train.device)
    if workers > 1:
        # The driver of a trial must not take what its workers need, or all of them would wait for each other.
        own: dict[str, float] = {"memory": 2**20}
        bundle = {"CPU": 1.0} | ({"GPU": 1.0} if cuda else {})
        fit = require_room(config, "train.num_workers", workers, "worker", bundle) // workers
    else:
        share = settings.gpus_per_trial if settings.gpus_per_trial is not None else float(cuda)
        own = {"CPU": float(settings.cpus_per_trial)} | ({"GPU": share} if share else {})
        key = "tune.cpus_per_trial" + (", tune.gpus_per_trial" if share else "")
        fit = require_room(config, key, 1, "trial", own)
    if fit < 1 or grows():  # what waits is the demand by which a cluster scales
        return own, settings.max_concurrent or max(fit, 1)
    return own, min(fit, settings.max_concurrent or fit)


def _sweep(run: Run, space: SearchSpace, study: Any, storage: Any) -> None:
    """Evaluate what the study still lacks."""
    config = run.config
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose table of the configuration cannot be turned off
    from ray import tune

    from pipeline.tune.failures import Deaths, storage_error
    from pipeline.tune.processes import nested_trial, single_trial
    from pipeline.tune.search import StudyScheduler, StudySearch
    from pipeline.tune.study import build_sampler, directions, finished

    keep_keys_out_of_runtime_environments()
    count_killed_trials_as_lost()
    settings = config.tune
    several = config.train.least_workers > 1
    name, trials = study.study_name, len(study.get_trials(deepcopy=False))
    sampler = build_sampler(settings, config.seed, trials)
    deaths = Deaths()
    search = StudySearch(space, sampler, study, storage, run.folder, directions(settings), deaths)
    left = max(settings.num_samples - len(finished(study)), len(search.interrupted))
    if left <= 0:
        return
    own, concurrent = _resources(config)
    scheduler = None
    if settings.scheduler == "asha" and len(settings.metrics) == 1:
        scheduler = StudyScheduler(config, phases_of(config, space.only_sampler), study)
    shares = "one autoencoder and its encodings" if space.only_sampler else "nothing: each trains all phases"
    say(
        f"tune: {left} trials to go, {concurrent} at a time; they share {shares}"
        + (f"; {len(search.interrupted)} go on from their checkpoints" if search.interrupted else "")
    )
    trainable = tune.with_parameters(nested_trial if several else single_trial, template=_template(run, space, name))
    run.folder.remove("tune/ray")  # of trials' worker groups in an earlier session
    # Tune pickles its own state, file system and all, into a snapshot that nobody reads: not where others can.
    with tempfile.TemporaryDirectory(prefix="ldcvae-tune-") as snapshot:
        tuner = tune.Tuner(
            tune.with_resources(trainable, own),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=left,
                max_concurrent_trials=concurrent,
                reuse_actors=not several,  # a process that has imported torch serves one trial after the other
                trial_dirname_creator=lambda trial: f"{trial.config['number']:05d}",
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=snapshot,
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                callbacks=[deaths],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError as error:  # of this process: the study could not be written
            raise storage_error(str(error)) or error from None
    run.folder.remove("tune/ray")
    if search.stuck:
        raise StorageError(f"{search.stuck}; trials go on from their checkpoints with the same command")
    if len(finished(study)) < settings.num_samples:
        raise KeyboardInterrupt  # Tune catches it and returns


def _best_yaml(config: Config, overrides: dict[str, Any]) -> str:
    """The best trial's configuration, under a name of its own, without the search itself."""
    best = override(config, overrides | {"name": f"{config.name}-best"}).model_dump(mode="json", exclude={"tune"})
    return yaml.safe_dump(best, sort_keys=False, width=100)


def _tell(config: Config, default: dict[str, float], best: Any) -> None:
    """The table in the terminal: the config's own values against the best trial."""
    found = best.user_attrs["figures"]
    shown = [figure for figure in _SHOWN if figure in found]
    say(f"{'trial':22}" + "".join(f"{figure:>16}" for figure in shown))
    for label, figures in (("defaults (0)", default), (f"best ({best.number})", found)):
        say(f"{label:22}" + "".join(f"{figures.get(figure, float('nan')):>16.4g}" for figure in shown))
    content = config.model_dump(mode="json")
    for path, value in best.user_attrs["overrides"].items():
        section, _, key = path.partition(".")
        say(f"  {path}: {content[section][key]} -> {value}")


def _results(run: Run, study: Any, name: str) -> tuple[list[str], dict[str, Any]]:
    """Write everything that follows from the study."""
    config, folder = run.config, run.folder
    from pipeline.tune.plots import search_pictures
    from pipeline.tune.study import best_trial, finished, table_bytes, trials_table

    best, trials = best_trial(study), finished(study)
    default = next((trial for trial in trials if trial.user_attrs.get("origin") == "defaults"), None)
    figures = default.user_attrs.get("figures", {}) if default is not None else {}
    front = sorted(trial.number for trial in study.best_trials)
    files = {
        "tune/best.yaml": _best_yaml(config, best.user_attrs["overrides"]).encode(),
        "tune/trials.parquet": table_bytes(trials_table(study)),
    }
    pictures: list[Picture] = search_pictures(study, config.tune.metrics)
    grids = {"default": default, "best": best}
    for which, trial in grids.items():
        grid = f"tune/grids/{name}/{trial.number:05d}.png" if trial is not None else ""
        if trial is not None and folder.exists(grid):
            words = f"Images of the {which} configuration, trial {trial.number}"
            pictures.append(Picture(f"grid-{which}", folder.read(grid), None, words))
    for picture in pictures:
        files |= {f"tune/{file}": content for file, content in picture.files.items()}
    for old in folder.files("tune/*.png"):
        folder.remove(old)
    for file, content in files.items():
        folder.write(file, content)
    folder.remove(f"tune/checkpoints/{name}")
    if not folder.below("tune/checkpoints"):  # of another search that has not ended
        folder.remove("tune/checkpoints")
    states = [trial.state.name for trial in trials]
    say(
        f"tune: {len(trials)} trials: {states.count('COMPLETE')} completed, {states.count('PRUNED')} stopped early, "
        f"{states.count('FAIL')} failed"
    )
    _tell(config, figures, best)
    if len(config.tune.metrics) > 1:
        say(f"Pareto front ({', '.join(config.tune.metrics)}): trials {', '.join(map(str, front))}")
    say(f"tune: {folder.url}/tune/best.yaml")
    info = {
        "study": name,
        "trials": {state: states.count(state) for state in ("COMPLETE", "PRUNED", "FAIL")},
        "metrics": list(config.tune.metrics),
        "best": {"number": best.number, "overrides": best.user_attrs["overrides"]} | _numbers(best),
        "default": _numbers(default),
        "pareto": front,
        "pictures": {picture.name: picture.alt for picture in pictures},
    }
    return list(files), info


def _numbers(trial: Any) -> dict[str, Any]:
    return {"figures": trial.user_attrs.get("figures", {}) if trial is not None else {}}


def run(run: Run, force: bool = False) -> Manifest:
    """See `pipeline.tune.run`."""
    import optuna

    from pipeline.tune.study import directions, enqueue_points, open_storage

    config, folder = run.config, run.folder
    space = build_space(config)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    data = prepare.run(run)
    generated = {"validation": ("tune.num_images", config.tune.num_images)}
    require_neighbours(config.evaluate.neighbours, data.info["counts"], generated)  # before an autoencoder is trained
    parts: dict[str, Any] = {"data": data.digest, "seed": config.seed}
    if space.only_sampler:
        parts["train"] = train.run(run).digest
    else:
        parts["train"] = config.train.kept_under(config.train.operational)
        if phases_of(config, shares=False) > 2:
            parts |= decoder_parts(config)
    parts["model"] = config.model.kept_under()
    parts["sampler"] = config.sampler.kept_under({"checkpoint_steps"})
    if config.sample.temperature != 1.0:
        parts["temperature"] = config.sample.temperature
    judged = config.evaluate.kept_under(FILES)
    parts["features"] = {key: judged[key] for key in {"extractor", "classifier_epochs", "neighbours"} & set(judged)}
    parts |= judge_parts(config)
    parts["tune"] = config.tune.model_dump(mode="json", exclude=_OPERATIONAL)
    name = f"{config.name}-{fingerprint(at_format(parts, FORMAT))[:8]}"

    def work(_: str) -> tuple[list[str], dict[str, Any]]:
        storage = open_storage(folder, config.tune.study_url)
        if force:
            if name in optuna.get_all_study_names(storage):
                optuna.delete_study(study_name=name, storage=storage)
            folder.remove(f"tune/checkpoints/{name}")
        study = optuna.create_study(
            study_name=name, storage=storage, directions=directions(config.tune), load_if_exists=True
        )
        enqueue_points(study, space)
        several = config.train.least_workers > 1
        # A stopped trial's workers are only cleaned up where the dashboard runs: without it the search would hang.
        ray = config.ray.model_copy(update={"dashboard": config.ray.dashboard or several})
        with connect(config.model_copy(update={"ray": ray})):
            _sweep(run, space, study, storage)
        return _results(run, study, name)

    parts |= {"num_samples": config.tune.num_samples, "start_from": json.dumps(config.tune.start_from)}
    return run.stage("tune", parts, work, force, FORMAT)
