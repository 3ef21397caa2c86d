"""Images that stream from storage: nothing lost, nothing doubled, the same order wherever training begins."""

import dataclasses
import shutil
import threading

import numpy as np
import pytest
import torch
from processes import here, kill_driver, start, wait_for
from test_faults import history, model_hash, registered

from ldcvae.batches import batches
from ldcvae.model import LDCVAE
from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.feed import InMemory, make_feed
from ldcvae.training.world import World
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import load_config, override, parse_config
from pipeline.store.checkpoint import load_state, save_state
from pipeline.store.data import shards as dataset
from pipeline.store.data import stream as feed
from pipeline.store.data.shards import load_split, write_split
from pipeline.store.data.splits import labelled_images, some_images, spaced_images, split_images
from pipeline.store.data.stored import READERS, StoredSplit
from pipeline.store.data.stream import Streamed, StreamedSplit
from pipeline.store.model import build_model
from pipeline.store.run import open_run

N, SHAPE, GROUP = 203, (1, 8, 8), 10
WINDOW = 35 * 64  # three row groups
SMALL = [
    "model.width=16",
    "model.depth=1",
    "model.latent_dim=4",
    "train.epochs=3",
    "train.batch_size=16",
    "train.channels_last=false",
]


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A run with 203 training images in 5 shards of up to 5 row groups; the pixels of image i are noise of seed i."""
    monkeypatch.setattr(dataset, "GROUP_BYTES", GROUP * 64)
    monkeypatch.setattr(feed, "WINDOW_BYTES", WINDOW)
    opened = open_run(parse_config({"storage": str(tmp_path), "name": "run"}))
    images = np.random.default_rng(0).integers(0, 256, (N + 16, *SHAPE), dtype=np.uint8)

    def work(_):
        names = write_split(opened.folder, "train", images[:N], np.arange(N), 44)
        names += write_split(opened.folder, "validation", images[N:], None, 44)
        counts = {"train": N, "validation": 16}
        return names, {"source": "noise", "shape": list(SHAPE), "counts": counts, "classes": list(map(str, range(N)))}

    opened.stage("data", {}, work)
    return opened


@pytest.fixture
def stored(opened):
    return StreamedSplit(opened, "train", 0)


def holding(opened, memory_mb):
    """The run opened anew, as with another `train.memory_mb`."""
    return open_run(override(opened.config, {"train.memory_mb": memory_mb}))


def streamed(stored, batch=6, rank=0, size=1, seed=0):
    return Streamed(stored, batch, World(rank, size), seed, WINDOW)


def epoch_of(source, steps, epoch=0):
    return torch.cat([source.batch(step).where for step in range(epoch * steps, (epoch + 1) * steps)])


def test_shards_hold_several_row_groups_with_rows_and_checksums(stored, opened):
    assert stored.shape == (N, *SHAPE)
    assert [group.rows for group in stored.groups[:6]] == [10, 10, 10, 10, 4, 10]
    assert [group.first for group in stored.groups[:6]] == [0, 10, 20, 30, 40, 44]
    assert {group.shard for group in stored.groups} == {f"data/train-{number:05d}.parquet" for number in range(5)}
    assert stored.groups[5].number == 0
    pixels, labels = stored.read(stored.groups[5])
    whole = load_split(opened, "train")
    assert torch.equal(torch.from_numpy(pixels.copy()), whole.pixels[44:54])
    assert labels.tolist() == whole.labels[44:54].tolist()


@pytest.mark.parametrize("size", [1, 3])
def test_every_image_once_an_epoch_over_all_ranks(stored, opened, size):
    pixels = load_split(opened, "train").pixels
    steps = N // 6
    for epoch in (0, 1):
        seen = []
        for rank in range(size):
            source = streamed(stored, rank=rank, size=size)
            for step in range(epoch * steps, (epoch + 1) * steps):
                batch = source.batch(step)
                assert len(batch.pixels) == 6 // size
                assert torch.equal(batch.pixels, pixels[batch.where])
                seen += batch.where.tolist()
        assert len(seen) == len(set(seen)) == steps * 6  # what is left over is less than a batch


def test_the_order_is_the_seeds_and_new_every_epoch(stored):
    steps = N // 6
    first = epoch_of(streamed(stored), steps)
    assert torch.equal(first, epoch_of(streamed(stored), steps))
    assert not torch.equal(first, epoch_of(streamed(stored, seed=1), steps))
    assert not torch.equal(first, epoch_of(streamed(stored), steps, epoch=1))
    # Neither row groups nor the rows in them stay together.
    assert (first.diff() == 1).float().mean() < 0.1
    # A window's rows come before those of the next: that bounds the memory.
    assert len({int(where) // 44 for where in first[:30]}) > 1


@pytest.mark.parametrize("size", [1, 3])
def test_any_step_can_be_read_alone(stored, size):
    steps = N // 6
    in_order = [streamed(stored, size=size).batch(step) for step in range(2 * steps)]
    source = streamed(stored, size=size)
    for step in np.random.default_rng(0).permutation(2 * steps).tolist():
        batch = source.batch(step)
        assert torch.equal(batch.where, in_order[step].where)
        assert torch.equal(batch.pixels, in_order[step].pixels)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", ["memory", "streamed"])
def test_batch_indices_name_the_images_of_all_ranks(stored, opened, kind, size):
    images = load_split(opened, "train").pixels if kind == "memory" else stored
    ranks = [make_feed(images, 6, World(rank, size), 0) for rank in range(size)]
    assert isinstance(ranks[0], InMemory if kind == "memory" else Streamed)
    for step in (0, 7, 40):
        together = torch.cat([rank.batch(step).where for rank in ranks])
        for rank in ranks:
            assert torch.equal(rank.batch_indices(step), together)


def test_a_batch_larger_than_a_window_is_put_together(stored):
    source = streamed(stored, batch=101)
    assert len(set(epoch_of(source, 2).tolist())) == 202


def test_few_windows_are_held_and_the_next_is_read_ahead(stored, monkeypatch):
    source = streamed(stored)
    made, new_buffer = [], source._new_buffer
    monkeypatch.setattr(source, "_new_buffer", lambda: made.append(new_buffer()) or made[-1])
    for step in range(2 * (N // 6)):
        source.batch(step)
        assert len(source._windows) <= 3
    assert len(made) <= 4  # used again for all further windows
    epoch, number = max(source._windows)
    assert source._windows[epoch, number].result().pixels.shape[0] == 35
    assert (epoch, number) == (2, 0)  # already the next epoch's first


def test_two_feeds_in_two_threads_do_not_disturb_each_other(stored):
    steps, found = N // 6, {}

    def read(seed):
        found[seed] = epoch_of(streamed(stored, seed=seed), steps)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        assert torch.equal(found[seed], epoch_of(streamed(stored, seed=seed), steps))


def damage(folder, group):
    """Swap the shard for one that differs in a pixel, and is whole Parquet with another row group."""
    content = bytearray(folder.read(group.shard))
    images, labels = dataset.decode_shard(bytes(content), SHAPE)
    images = images.copy()
    images[group.number * GROUP, 0, 0, 0] ^= 1
    folder.write(group.shard, dataset.encode_shard(images, labels, "train"))


def test_a_changed_row_group_is_refused_by_name(stored, opened):
    damage(opened.folder, stored.groups[7])
    fresh = StoredSplit(opened, "train")
    with pytest.raises(PipelineError, match=r"train-00001\.parquet: row group 2 is damaged: sha256 .* with --force"):
        fresh.read(fresh.groups[7])
    fresh.read(fresh.groups[6])  # the others of the shard are whole
    with pytest.raises(PipelineError, match="row group 2 is damaged"):
        epoch_of(streamed(fresh), N // 6)


@pytest.mark.parametrize("where", [4, 300, -5])
def test_a_flipped_byte_is_refused_or_harmless(stored, opened, where):
    whole = load_split(opened, "train").pixels
    shard = "data/train-00001.parquet"
    content = bytearray(opened.folder.read(shard))
    content[where] ^= 255
    opened.folder.write(shard, bytes(content))
    fresh, refused = StoredSplit(opened, "train"), []
    for group in [group for group in fresh.groups if group.shard == shard]:
        try:
            pixels, _ = fresh.read(group)
        except PipelineError as error:
            refused.append(str(error))
        else:
            assert (pixels == whole[group.first : group.first + group.rows].numpy()).all()
    assert refused
    assert all("train-00001.parquet: row group " in message and "is damaged" in message for message in refused)


def test_missing_shards_and_lists_are_named(stored, opened):
    folder = opened.folder
    folder.remove("data/train-00002.parquet")
    with pytest.raises(PipelineError, match=r"train-00002\.parquet does not exist"):
        epoch_of(streamed(StoredSplit(opened, "train")), N // 6)
    folder.write("data/row_groups/train.json", b"{}")
    with pytest.raises(PipelineError, match=r"row_groups/train\.json is damaged"):
        StoredSplit(opened, "train")
    manifest = folder.read_json("data/manifest.json")
    del manifest["outputs"]["data/row_groups/train.json"]
    folder.write_json("data/manifest.json", manifest)
    with pytest.raises(PipelineError, match=r"cannot be streamed; run `python -m pipeline\.prepare` .* --force"):
        split_images(holding(opened, 0), "train")


def test_memory_mb_decides(stored, opened):
    assert isinstance(split_images(holding(opened, 0), "train"), StoredSplit)
    assert isinstance(split_images(holding(opened, 1), "train"), torch.Tensor)
    manifest = opened.folder.read_json("data/manifest.json")
    manifest["info"]["counts"]["train"] = 2**14 + 1  # 64 bytes each: one image more than 1 MiB
    opened.folder.write_json("data/manifest.json", manifest)
    assert isinstance(split_images(holding(opened, 1), "train"), StoredSplit)
    assert isinstance(split_images(holding(opened, 2), "train"), torch.Tensor)


def whole_of(images):
    return torch.cat([*batches(images, 50)])


@pytest.mark.parametrize(("start", "stop"), [(0, N), (0, 1), (39, 41), (7, 130), (N - 1, N), (5, 5)])
def test_parts_are_the_same_stored_and_in_memory(stored, opened, start, stop):
    held = load_split(opened, "train").pixels
    parts = [list(batches(images, 33, start, stop)) for images in (held, stored)]
    assert [len(part) for part in parts[0]] == [*[33] * ((stop - start) // 33), *filter(None, [(stop - start) % 33])]
    assert len(parts[0]) == len(parts[1])
    assert all(map(torch.equal, *parts))


def test_evenly_spaced_images_are_the_same_stored_and_in_memory(stored, opened):
    held = load_split(opened, "train").pixels
    for count in (1, 20, 57, N, 1000):
        some = [spaced_images(images, count) for images in (held, stored)]
        assert some[0].shape == some[1].shape
        assert torch.equal(*map(whole_of, some))
        assert torch.equal(*(whole_of(spaced_images(part, 7)) for part in some))


def test_row_groups_are_read_by_several_threads_and_few_are_held(stored, monkeypatch):
    read, lock, together = StoredSplit.read, threading.Lock(), threading.Barrier(READERS, timeout=30)
    counts = {"begun": 0, "used": 0, "most": 0}

    def watched(split, group):
        with lock:
            counts["begun"] += 1
            counts["most"] = max(counts["most"], counts["begun"] - counts["used"])
            wait = counts["begun"] <= READERS
        if wait:
            together.wait()  # goes on only when all of them are here
        return read(split, group)

    monkeypatch.setattr(StoredSplit, "read", watched)
    found = []
    for (_, labels), group in zip(stored.read_each(stored.groups), stored.groups, strict=True):
        assert labels.tolist() == list(range(group.first, group.first + group.rows))
        found += labels.tolist()
        with lock:
            counts["used"] += 1
    assert found == list(range(N))
    assert counts["most"] <= READERS + 1  # those ahead, and the one in use


def test_a_reader_that_fails_names_the_first_damaged_row_group(stored, opened):
    for number in (8, 7):
        damage(opened.folder, stored.groups[number])
    with pytest.raises(PipelineError, match="row group 2 is damaged"):  # groups 7 and 8 are 2 and 3 of their shard
        list(StoredSplit(opened, "train").chunks(0, N))


def test_validation_images_stream_too(stored, opened):
    held = load_split(opened, "validation").pixels
    assert isinstance(split_images(holding(opened, 0), "validation"), StoredSplit)
    phases = [phase(stored, validation=part) for part in (held, split_images(holding(opened, 0), "validation"))]
    errors = [one.validation_error() for one in phases]
    assert errors[0] == errors[1] > 0
    with pytest.raises(PipelineError, match="has no test images"):
        split_images(holding(opened, 0), "test")


def test_some_images_are_a_fixed_choice(stored, opened, monkeypatch):
    whole = load_split(opened, "train")
    for images in (stored, whole.pixels):
        some = some_images(images, 57, 0, "floor")
        assert some.shape == (57, *SHAPE)
        assert torch.equal(whole_of(some), whole_of(some_images(images, 57, 0, "floor")))
        assert not torch.equal(whole_of(some), whole_of(some_images(images, 57, 1, "floor")))
        assert len(some_images(images, 1000, 0)) == len(whole_of(some_images(images, 1000, 0))) == N
    chosen = stored.choose(57, 0, "floor").load()
    assert torch.equal(chosen.pixels, whole_of(some_images(stored, 57, 0, "floor")))
    assert torch.equal(chosen.pixels, whole.pixels[chosen.labels])
    assert stored.shape == (N, *SHAPE)
    assert torch.equal(stored.load().pixels, whole.pixels)
    monkeypatch.setattr("pipeline.store.data.splits.WINDOW_BYTES", WINDOW)
    labelled = labelled_images(holding(opened, 0), 0, "classifier")
    assert len(labelled.pixels) == WINDOW // 64  # nothing may be held: as many as a window has
    assert torch.equal(labelled.pixels, whole.pixels[labelled.labels])
    assert torch.equal(labelled_images(holding(opened, 1), 0).pixels, whole.pixels)


def model() -> LDCVAE:
    torch.manual_seed(0)
    return build_model(load_config(None, SMALL), SHAPE)


@pytest.mark.parametrize("size", [1, 3])
def test_encodings_are_the_same_streamed_and_in_memory(stored, opened, size):
    net, whole = model(), load_split(opened, "train").pixels
    expected = net.encodings(whole)
    for images in (whole, stored):
        parts = []

        class Rank(World):
            def gather(self, part, parts=parts):
                parts.append(part)
                return part

        for rank in range(size):
            encode_split(net, images, Rank(rank, size))
        mean, log_variance = torch.cat(parts[::2])[:N], torch.cat(parts[1::2])[:N]
        same = torch.equal if size == 1 else torch.allclose  # on more ranks other images share a pass
        assert same(mean, expected.mean)
        assert same(log_variance, expected.log_variance)
        assert len({len(part) for part in parts}) == 1  # or they could not be gathered


def phase(images, *overrides, validation=None):
    config = load_config(None, [*SMALL, *overrides])
    validation = torch.zeros(16, *SHAPE, dtype=torch.uint8) if validation is None else validation
    return AutoencoderPhase(model(), images, validation, config.train, World(), 0)


def weights(one):
    return torch.cat([p.detach().flatten() for p in one.network.parameters()])


@pytest.mark.parametrize("kind", ["memory", "streamed"])
@pytest.mark.parametrize("stop", [5, 12, 17, 31])  # of 12 steps an epoch
def test_training_goes_on_at_any_step(tmp_path, stored, opened, kind, stop):
    images = load_split(opened, "train").pixels if kind == "memory" else stored
    straight = phase(images)
    assert list(straight.epochs()) == [1, 2, 3]
    assert straight.total == 36
    killed = phase(images)
    for step in killed.blocks(1):
        if step == stop:
            save_state({"model": killed.model.state_dict(), "phase": killed.state()}, tmp_path)
            break
    resumed = phase(images)
    state = load_state(tmp_path)
    resumed.model.load_state_dict(state["model"])
    resumed.load(state["phase"])
    assert resumed.within == stop % 12
    assert list(resumed.blocks(5)) == [step for step in (5, 10, 12, 17, 22, 24, 29, 34, 36) if step > stop]
    assert torch.equal(weights(resumed), weights(straight))
    timing = {"seconds", "time", "images_per_s"}
    assert [{k: v for k, v in r.items() if k not in timing} for r in resumed.history] == [
        {k: v for k, v in r.items() if k not in timing} for r in straight.history
    ]
    # The time before the kill counts.
    record = resumed.history[stop // 12] if stop % 12 else None
    if record is not None:
        before = state["phase"]["epoch"]["seconds"]
        assert before > 0
        assert 12 * 16 / record["images_per_s"] > before


def test_streamed_and_held_images_train_alike(stored, opened):
    errors = []
    for images in (stored, load_split(opened, "train").pixels):
        one = phase(images, "train.epochs=20")
        list(one.epochs())
        errors.append(one.history[-1]["reconstruction"])
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


def test_a_loss_that_is_not_finite_is_found_before_a_checkpoint_within_the_epoch(stored):
    bad = phase(stored, "train.inverse_temperature=1e30", "train.learning_rate=1e30", "train.objective=elbo")
    with pytest.raises(ArithmeticError, match="is not finite at step") as caught:
        list(bad.blocks(3))
    assert bad.step - caught.value.step <= 3
    assert len(bad.batch_indices(caught.value.step)) == 16


def test_consistency_streams_but_does_not_stop_within_an_epoch(stored, opened):
    results = []
    for images in (stored, load_split(opened, "train").pixels):
        one = phase(images, "train.consistency=0.5", "train.epochs=2")
        list(one.epochs())
        results.append(one.history[-1]["loss"])
    assert results[0] == pytest.approx(results[1], rel=0.05)
    with pytest.raises(ConfigError, match="checkpoint_steps and consistency do not go together"):
        load_config(None, ["train.consistency=0.5", "train.checkpoint_steps=5"])


def test_ranks_can_differ_in_number_after_a_restart(stored):
    """A step is the same number of images for any number of ranks, so the position stays what it was."""
    for size in (1, 2, 3):
        world = dataclasses.replace(World(), size=size)
        source = Streamed(stored, 6, world, 0, WINDOW)
        assert source._make_plan(0, size - 1).starts[-1] == N // 6 * 6 // size


TRAIN = [
    "ray.num_cpus=1",
    "data.images_per_shard=100",
    "train.memory_mb=0",
    "train.epochs=6",
    "train.checkpoint_epochs=100",
    "sampler.steps=40",
    "sampler.checkpoint_steps=40",
]


@pytest.mark.drill
def test_a_streaming_run_killed_within_an_epoch_goes_on_from_there(tmp_path, one_ray):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    here("prepare", killed, *TRAIN)
    shutil.copytree(killed, undisturbed)
    out, _ = here("train", undisturbed, *TRAIN)
    assert "1,294 images stream from storage, 13 row groups" in out
    for _ in range(4):  # the kill may come when an epoch has just ended: then once more from the start
        shutil.rmtree(killed / "tiny" / "train", ignore_errors=True)
        process = start("train", killed, *TRAIN, "train.checkpoint_steps=7")
        wait_for(lambda: any(step % 20 for step in registered(killed, "autoencoder")), "checkpoint within an epoch")
        kill_driver(process)
        if registered(killed, "autoencoder")[-1] % 20:  # steps an epoch
            break
    else:
        pytest.fail("no kill came within an epoch")
    assert not (killed / "tiny" / "train" / "manifest.json").exists()
    here("train", killed, *TRAIN)  # how often it is saved does not matter
    assert model_hash(killed) == model_hash(undisturbed)
    lines = history(killed)
    assert [line["epoch"] for line in lines if line["phase"] == "autoencoder"] == list(range(1, 7))
    timing = {"seconds", "time", "images_per_s", "latents_per_s"}
    strip = [
        [{k: v for k, v in line.items() if k not in timing} for line in history(s)] for s in (undisturbed, killed)
    ]
    assert strip[0] == strip[1]
