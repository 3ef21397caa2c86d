"""What one training process does: resume, the phases one after the other, write the model. Runs inside Ray Train."""

import platform
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ldcvae.densities.covariances import base_note
from ldcvae.model import LDCVAE
from ldcvae.training.autoencoder import AutoencoderPhase, use_memory_format
from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.epochs import EpochPhase
from ldcvae.training.heap import keep_freed_memory, peak_mb
from ldcvae.training.monitor import NonFiniteLossError
from ldcvae.training.phase import Phase, Progress
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.world import World
from pipeline.config.errors import PipelineError
from pipeline.config.sections import Config, TrainConfig
from pipeline.remote.failures import WorkerMemoryError, is_out_of_memory
from pipeline.remote.memory import own_memory
from pipeline.store.checkpoint import load_state, save_state
from pipeline.store.data.splits import split_images
from pipeline.store.data.stored import StoredSplit
from pipeline.store.folder import Folder
from pipeline.store.history import write_history
from pipeline.store.model import build_model, perceptual_features, write_before, write_best, write_model
from pipeline.store.run import Run
from pipeline.train.failures import remedy

__all__ = ["train_worker", "train_world"]


def train_world() -> World:
    """This worker's place in its Ray Train group."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    size = context.get_world_size()

    def wrap(network: nn.Module) -> nn.Module:
        if size == 1:
            return network
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)

    return World(context.get_world_rank(), size, device, wrap)


class _Reporter:
    """Checkpoints through Ray Train, uploaded while training goes on; figures and progress from rank 0."""

    def __init__(self, folder: Folder, model: LDCVAE, world: World, board: Any):
        self.folder, self.model, self.world, self.board = folder, model, world, board
        self.earlier: list[dict[str, Any]] = []  # history of finished phases
        self.refused: list[str] = []  # names of damaged checkpoints

    def progress(self, record: dict[str, Any]) -> None:
        # The peak too, which a worker that is killed cannot tell any more.
        self.board.write.remote(record | {"peak_mb": peak_mb()})

    def say(self, message: str) -> None:
        self.board.say.remote(message)

    def save(self, phase: Phase) -> None:
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        figures = {"phase": phase.name, "step": phase.step}
        if self.world.rank != 0:
            ray.train.report(figures, checkpoint=None)
            return
        write_history(self.folder, self.earlier + phase.history)
        folder = tempfile.mkdtemp(prefix="ldcvae-checkpoint-")
        save_state({"model": self.model.state_dict(), "phase": phase.state(), "earlier": self.earlier}, folder)
        name = f"{phase.name}_{phase.step:08d}"
        while name in self.refused:  # Ray deletes that folder some day: nothing new may lie in it
            name += "_again"
        ray.train.report(
            figures,
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )


def _kept_checkpoints() -> Iterator[Any]:
    """Ray Train's checkpoints of this run, the newest first."""
    import ray.train
    from ray.train import CheckpointConsistencyMode

    newest = ray.train.get_checkpoint()
    if newest is None:
        return
    yield newest
    for reported in reversed(ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)):
        if reported.checkpoint.path != newest.path:
            yield reported.checkpoint


def _resume(say: Callable[[str], None]) -> tuple[dict[str, Any] | None, list[str]]:
    """The state of the newest whole checkpoint, and the names of damaged ones that were passed over."""
    refused: list[str] = []
    for checkpoint in _kept_checkpoints():
        name = checkpoint.path.rpartition("/")[2]
        try:
            with checkpoint.as_directory() as folder:
                return load_state(folder, checkpoint.path), refused
        except (PipelineError, FileNotFoundError) as error:
            say(f"{error}; going back to the one before")
            refused.append(name)
    if refused:
        say("no whole checkpoint is left, so training starts anew")
    return None, refused


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """One rank's whole training.

    Args:
        job: `run` (Run), `name` (of its checkpoints' folder), `threads` (CPU threads), `board` (progress actor).

    Returns:
        `{"device": name}` when the model is written, or `{"failure": message}` when the loss became non-finite, or
        the only worker was refused memory on the CPU: not raised, because trying again from the same state would end
        the same way.

    Raises:
        WorkerMemoryError: when memory ran out otherwise, with this process's peak and limit.
    """
    try:
        return _train(job)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        memory = own_memory()
        about = f" ({memory})" if memory else ""
        words = " ".join(str(error).split())[:200]
        what = f"ran out of memory{about}" + (f": {words}" if words else "")
        # The kernel refuses memory only to who asks for more than there could be. A GPU may be shared, and of several
        # workers the others wait for this one.
        if (isinstance(error, MemoryError) or "DefaultCPUAllocator" in words) and train_world().size == 1:
            again = "the same command goes on from the last checkpoint, other settings start anew"
            return {"failure": f"a training worker {what}; {remedy(job['run'].config)}; {again}"}
        raise WorkerMemoryError(what) from error


def _train(job: dict[str, Any]) -> dict[str, Any]:
    keep_freed_memory()
    torch.set_num_threads(job["threads"])
    run: Run = job["run"]
    config, world = run.config, train_world()
    train, validation = (split_images(run, split) for split in ("train", "validation"))
    torch.manual_seed(config.seed)  # initial weights; everything later is keyed by step
    model = build_model(config, run.shape).to(world.device)
    settings = config.train
    use_memory_format(model, settings)
    reporter = _Reporter(run.folder, model, world, job["board"])
    progress = reporter.progress if world.rank == 0 else None
    state, reporter.refused = _resume(reporter.say if world.rank == 0 else lambda message: None)
    if state is not None:
        model.load_state_dict(state["model"])
        reporter.earlier = state["earlier"]
    phase: EpochPhase | None = None
    try:
        if state is None or state["phase"]["phase"] == AutoencoderPhase.name:
            phase = AutoencoderPhase(model, train, validation, settings, world, config.seed)
            if state is not None:
                phase.load(state["phase"])
                state = None
            if world.rank == 0 and isinstance(train, StoredSplit):
                reporter.say(f"train: {len(train):,} images stream from storage, {len(train.groups):,} row groups")
            _walk(phase, settings, reporter, progress)
            phase = None  # its copies of weights and images go
        model.eval()
        encodings, held_out = (encode_split(model, images, world) for images in (train, validation))
        if config.decoder.epochs and (state is None or state["phase"]["phase"] == DecoderPhase.name):
            if state is None and world.rank == 0:
                write_before(run.folder, job["name"], model)
            phase = DecoderPhase(
                model,
                train,
                encodings,
                validation,
                config.decoder,
                world,
                config.seed,
                autoencoder=settings,
                sampler=config.sampler,
                features=perceptual_features(config, run.shape, world.device),
                state=state["phase"] if state is not None else None,
            )
            state = None
            _walk(phase, settings, reporter, progress)
            phase = None
            model.eval()
        fused, begun = bool(settings.fused), state["phase"] if state is not None else None
        second = SamplerPhase(
            model,
            encodings,
            held_out,
            config.sampler,
            world,
            config.seed,
            fused,
            begun,
            fitted=config.decoder.fits_base,
        )
        if world.rank == 0 and second.base_kind in ("low_rank", "diagonal"):
            base = model.config
            note = base_note(base.latent_dim, base.base_components, base.base_kind, base.base_rank)
            reporter.say(f"sampler: {note}")
        for _ in second.blocks(config.sampler.checkpoint_steps, progress):
            if world.rank == 0:
                write_best(
                    run.folder,
                    job["name"],
                    model,
                    second.averaged,
                    [line["validation_sliced_wasserstein"] for line in second.history],
                )
            reporter.save(second)
        second.adopt_average()
    except NonFiniteLossError as error:
        return {"failure": _explain(error, phase, config)}
    if world.rank == 0:
        write_history(run.folder, reporter.earlier + second.history)
        write_model(run.folder, model)
    return {"device": torch.cuda.get_device_name() if world.device.type == "cuda" else platform.processor() or "cpu"}


def _walk(phase: EpochPhase, settings: TrainConfig, reporter: _Reporter, progress: Progress | None) -> None:
    """A phase over the images from where it is to its end, with checkpoints; the model gets its averaged weights."""
    for step in phase.blocks(settings.checkpoint_steps, progress):
        if phase.within or phase.epoch % settings.checkpoint_epochs == 0 or step == phase.total:
            reporter.save(phase)
    phase.adopt_average()
    reporter.earlier = reporter.earlier + phase.history


def _explain(error: NonFiniteLossError, phase: EpochPhase | None, config: Config) -> str:
    if phase is None:
        return (
            f"sampler: {error.term} is not finite at step {error.step}; the last good checkpoint is kept; "
            f"try a lower sampler.learning_rate (now {config.sampler.learning_rate})"
        )
    images, epoch = phase.batch_indices(error.step).tolist(), error.step // phase.steps_per_epoch + 1
    shown = ", ".join(map(str, images[:8])) + (", …" if len(images) > 8 else "")
    key, rate = "train.learning_rate", config.train.learning_rate
    if isinstance(phase, DecoderPhase):
        key, rate = "decoder.learning_rate", config.decoder.learning_rate
        if error.term in phase.of_discriminator:
            key, rate = "decoder.discriminator_learning_rate", config.decoder.discriminator_learning_rate
    return (
        f"{phase.name}: {error.term} is not finite at step {error.step} (epoch {epoch}, training images {shown}); "
        f"the last good checkpoint is kept; try a lower {key} (now {rate}) or look at these images"
    )
