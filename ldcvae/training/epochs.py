"""What the phases that walk through the images share: batches, epochs, blocks within them, a record of each."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldcvae.training.feed import StoredImages, make_feed
from ldcvae.training.phase import Phase, Progress
from ldcvae.training.world import World

__all__ = ["EpochPhase"]


class EpochPhase(Phase):
    """A phase whose steps take batches of training images; a subclass says what a step computes.

    Args:
        network: to train, and to average.
        images: (N, C, H, W) uint8 training images, the same on all ranks and moved to the device once; or the split
            on storage, which is streamed.
        batch_size: images per step, over all ranks; at most as many as there are.
        epochs: passes over the images.
        world: this rank.
        seed: of the images' order and of noise.
        channels_last: memory format of the network.
        rate: as the next ones, see `Phase`.
        decay: decoupled weight decay.
        ema: decay of the averaged weights.
        fused: fused Adam.
        betas: of Adam.
        more: further parameter groups.

    Raises:
        ValueError: if there are fewer training images than ranks.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor | StoredImages,
        batch_size: int,
        epochs: int,
        world: World,
        seed: int,
        *,
        channels_last: bool,
        rate: float,
        decay: float,
        ema: float,
        fused: bool,
        betas: tuple[float, float] = (0.9, 0.999),
        more: Sequence[dict[str, Any]] = (),
    ):
        self.world, self.seed = world, seed
        self.batch = min(batch_size, len(images) // world.size * world.size)
        if self.batch == 0:
            raise ValueError(f"{len(images)} training images are too few for {world.size} workers")
        self.steps_per_epoch = len(images) // self.batch
        self.channels_last = channels_last
        if channels_last:
            # Before the averaged copy is made: averaging two memory formats would take a slow path.
            network.to(memory_format=torch.channels_last)
        super().__init__(network, epochs * self.steps_per_epoch, rate, decay, ema, fused, betas, more)
        self.feed = make_feed(images, self.batch, world, seed)
        self._elapsed = 0.0  # seconds of this epoch before the last yield

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.step // self.steps_per_epoch

    @property
    def within(self) -> int:
        """Steps taken in the current epoch."""
        return self.step % self.steps_per_epoch

    def batch_indices(self, step: int) -> Tensor:
        """Positions in the training split of the images of a step, over all ranks."""
        return self.feed.batch_indices(step)

    def epochs(self, progress: Progress | None = None) -> Iterator[int]:
        """Train epoch by epoch from the current position; yields the number of epochs completed.

        Raises:
            NonFiniteLossError: naming term and step, before the epoch counts as completed.
        """
        for _ in self.blocks(None, progress):
            yield self.epoch

    def blocks(self, length: int | None, progress: Progress | None = None) -> Iterator[int]:
        """Train from the current position; yields the step at every epoch's end, and within one every `length` steps.

        Raises:
            NonFiniteLossError: naming term and step, before the block counts as completed.
        """
        while self.step < self.total:
            started = said = time.perf_counter()
            first = self.step
            if self.within == 0:
                self._begin_epoch()
            block = self.steps_per_epoch if length is None else length
            end = min((self.within // block + 1) * block, self.steps_per_epoch) - self.within + first
            while self.step < end:
                self.monitor.add(self.step, self._losses())
                self._update()
                if progress is not None and (now := time.perf_counter()) - said > 1.0:
                    said = now
                    rate = (self.step - first) * self.batch / (now - started)
                    progress({"phase": self.name, "done": self.step / self.total, "images_per_s": rate})
            if self.within:
                self.monitor.settle(self.world)
                self._elapsed += time.perf_counter() - started
            else:
                self._finish_epoch(started, progress)
            yield self.step

    def _begin_epoch(self) -> None:
        """What a subclass does before the first step of an epoch."""

    def _losses(self) -> dict[str, Tensor]:
        """One step's gradients on the weights, and its 0-d losses, from the sum to its parts."""
        raise NotImplementedError

    def validation_error(self) -> float:
        """Mean squared error per pixel of reconstructed validation images, with the averaged weights."""
        raise NotImplementedError

    def _finish_epoch(self, started: float, progress: Progress | None) -> None:
        losses = self.monitor.read(self.world)
        elapsed = self._elapsed + time.perf_counter() - started
        self._elapsed = 0.0
        self.seconds += elapsed
        record = {"phase": self.name, "epoch": self.epoch, "step": self.step} | losses
        record["validation_mse"] = self.validation_error()
        record["images_per_s"] = self.steps_per_epoch * self.batch / elapsed
        record |= {"workers": self.world.size, "seconds": round(self.seconds, 3), "time": round(time.time(), 3)}
        self.history.append(record)
        if progress is not None:
            progress({"done": self.step / self.total} | record)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from here, in the middle of an epoch too."""
        return super().state() | {"epoch": {"seconds": self._elapsed, "losses": self.monitor.state()}}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the model's own weights are loaded by the caller."""
        super().load(state)
        self._elapsed = state["epoch"]["seconds"]
        self.monitor.load(state["epoch"]["losses"], self.world.device)
