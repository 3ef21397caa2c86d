"""Feature extractors: what they are called, that they are kept, and that Inception takes weights from a path."""

import pickle

import numpy as np
import pytest
import torch

from ldcvae.metrics.images import frechet_distance
from pipeline.config.errors import ConfigError
from pipeline.config.load import load_config, override
from pipeline.judge.classifier import _accuracy, train_classifier
from pipeline.judge.extractors import build_extractor, random_convolutions
from pipeline.judge.figures import Judge, make_reference
from pipeline.store.data.shards import Images, load_split, write_split
from pipeline.store.data.stored import StoredSplit
from pipeline.store.folder import sha256
from pipeline.store.run import open_run
from pipeline.store.weights import judge_parts


def make_run(tmp_path, labels=True, shape=(1, 8, 8), unlabelled=0):
    """A run with two classes of images that differ in brightness; so many test images have no label."""
    run = open_run(load_config(None, [f"storage={tmp_path}", "evaluate.classifier_epochs=30"]))
    rng = np.random.default_rng(0)

    def work(_):
        names = []
        for split, n in (("train", 256), ("validation", 32), ("test", 64)):
            y = rng.integers(0, 2, n)
            x = (rng.integers(0, 100, (n, *shape)) + 120 * y[:, None, None, None]).astype(np.uint8)
            y[n - unlabelled if split == "test" else n :] = -1
            names += write_split(run.folder, split, x, y if labels else None, 1000)
        classes = ["dark", "bright"] if labels else []
        return names, {"shape": list(shape), "counts": {"train": 256}, "classes": classes}

    run.stage("data", {}, work)
    return run


def under(run, values):
    """The run under a configuration with some keys changed."""
    return run.with_config(override(run.config, values))


def images(n=10, shape=(1, 8, 8)):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_classifier_is_trained_once_and_kept_with_accuracy_and_hash(tmp_path):
    run = make_run(tmp_path)
    first = build_extractor(run)
    assert first.figure == "FD-classifier"
    assert first.accuracy is not None
    assert first.accuracy > 0.95
    features = first(images())
    assert features.shape == (10, 64)
    assert (features.dtype, features.device.type) == (torch.float32, "cpu")
    written = run.folder.filesystem.modified(run.folder.path("evaluation/classifier.safetensors"))
    again = build_extractor(run)
    assert again.describe() == first.describe()
    assert torch.equal(again(images()), features)
    assert run.folder.filesystem.modified(run.folder.path("evaluation/classifier.safetensors")) == written


def test_features_of_stored_images_are_those_of_images_in_memory(tmp_path):
    run = make_run(tmp_path)
    for extractor in (build_extractor(run), build_extractor(under(run, {"evaluate.extractor": "random"}))):
        features = extractor(load_split(run, "train").pixels)
        assert torch.equal(extractor(StoredSplit(run, "train")), features)
        assert torch.equal(extractor.of(load_split(run, "train").pixels.split(256)), features)


def test_large_images_pass_in_small_parts_and_teach_the_same(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    train, test = load_split(run, "train"), StoredSplit(run, "test")
    whole = train_classifier(train, epochs=2, seed=0)
    monkeypatch.setattr("ldcvae.batches._NUMBERS", 50 * 64)
    sizes = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: sizes.append(len(given[0])) if isinstance(module, torch.nn.Conv2d) else None
    )
    with hook:
        parts = train_classifier(train, epochs=2, seed=0)
        accuracy = _accuracy(parts, test)
    assert max(sizes) == 50
    for name, weight in parts.state_dict().items():
        torch.testing.assert_close(weight, whole.state_dict()[name], rtol=1e-3, atol=1e-4)
    held = test.load()
    assert accuracy == float((parts(held.pixels / 255).argmax(1) == held.labels).double().mean())


def test_the_classifier_learns_where_it_is_told_from_the_same_batches(monkeypatch):
    # Tensors of device meta have no numbers, so anything that stays on it can be shown without a GPU.
    adam, randperm, orders, given = torch.optim.AdamW, torch.randperm, [], set()
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **more: adam(*args, **more))  # not of meta
    monkeypatch.setattr(torch, "randperm", lambda *args, **more: orders.append(randperm(*args, **more)) or orders[-1])
    train = Images(images(40), torch.arange(40) % 2, ("a", "b"))
    train_classifier(train, epochs=2, seed=0)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda _, seen: given.add(seen[0].device.type))
    loss = torch.nn.functional.cross_entropy

    def noted(guesses, truth, **more):
        given.add(truth.device.type)
        return loss(guesses, truth, **more)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", noted)
    made = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    monkeypatch.setattr("pipeline.judge.classifier._classifier", lambda *_: made)  # ours looks at itself on the CPU
    with hook:
        network = train_classifier(train, epochs=2, seed=0, device="meta")
    assert given == {weight.device.type for weight in network.parameters()} == {"meta"}
    assert len(orders) == 4
    assert all(map(torch.equal, orders[:2], orders[2:]))


def test_the_stored_classifier_learns_on_the_device_of_the_process(tmp_path, monkeypatch):
    run, used = make_run(tmp_path), []

    def train(*args):
        used.append(args[3].type)
        return train_classifier(*args[:3])

    monkeypatch.setattr("pipeline.judge.classifier.process_device", lambda config: torch.device("cuda"))
    monkeypatch.setattr("pipeline.judge.classifier.train_classifier", train)
    extractor = build_extractor(run)
    assert used == ["cuda"]
    assert {weight.device.type for weight in extractor.network.parameters()} == {"cpu"}


def test_unlabelled_images_are_left_out():
    some = images(40)
    labels = torch.arange(40) % 4 - 1  # a quarter has none
    known = labels >= 0
    nets = [
        train_classifier(Images(some[rows], labels[rows], ("a", "b", "c")), epochs=1, seed=0)
        for rows in (torch.ones(40, dtype=torch.bool), known)
    ]
    assert all(map(torch.equal, *(net.state_dict().values() for net in nets)))


@pytest.mark.parametrize(("name", "content"), [("safetensors", b"garbage"), ("safetensors", None), ("json", b"{")])
def test_a_damaged_classifier_is_told_and_trained_again(tmp_path, capsys, name, content):
    run = make_run(tmp_path)
    first = build_extractor(run)
    run.folder.remove(f"evaluation/classifier.{name}")
    if content is not None:
        run.folder.write(f"evaluation/classifier.{name}", content)
    assert build_extractor(run).describe() == first.describe()
    assert "it is trained again" in capsys.readouterr().out
    assert build_extractor(run).describe() == first.describe()
    assert capsys.readouterr().out == ""


def test_other_settings_keep_a_classifier_of_their_own(tmp_path):
    run = make_run(tmp_path)
    first = build_extractor(run)
    other = build_extractor(under(run, {"evaluate.classifier_epochs": 2}))
    assert other.sha256 != first.sha256
    assert set(other.files) & set(first.files) == set()
    assert build_extractor(run).describe() == first.describe()
    assert build_extractor(under(run, {"evaluate.classifier_epochs": 2})).describe() == other.describe()


def test_images_without_a_label_are_neither_right_nor_wrong(tmp_path):
    runs = [make_run(tmp_path / str(count), unlabelled=count) for count in (0, 54, 64)]
    train = load_split(runs[0], "train")
    network = train_classifier(train, epochs=30, seed=0)
    assert [_accuracy(network, StoredSplit(run, "test")) for run in runs] == [1.0, 1.0, None]
    none = Images(train.pixels, torch.full_like(train.labels, -1), train.classes)
    with pytest.raises(ConfigError, match=r"evaluate\.extractor: .* labels of training images, and none has one"):
        train_classifier(none, epochs=1, seed=0)


def test_without_labels_auto_is_random_and_classifier_is_an_error(tmp_path):
    run = make_run(tmp_path, labels=False)
    extractor = build_extractor(run)
    assert (extractor.figure, extractor.accuracy) == ("FD-random", None)
    assert torch.equal(extractor(images()), build_extractor(under(run, {"seed": 5}))(images()))
    with pytest.raises(ConfigError, match=r"needs labels.*evaluate\.extractor=inception"):
        build_extractor(under(run, {"evaluate.extractor": "classifier"}))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_classifier_takes_every_image_shape(shape):
    train = Images(images(16, shape), torch.arange(16) % 2, ("a", "b"))
    network = train_classifier(train, epochs=1, seed=0)
    assert network(torch.rand(3, *shape)).shape == (3, 2)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file of untrained Inception weights in torch-fidelity's format."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(module.torch, "load", lambda *args, **kwargs: {})
        network = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path="unused"
        )
    torch.save(network.state_dict(), path)
    return path


def test_inception_takes_weights_from_a_path_and_is_called_fid(tmp_path, inception_weights):
    run = make_run(tmp_path)
    asked = {"evaluate.extractor": "inception", "evaluate.inception_weights": str(inception_weights)}
    extractor = build_extractor(under(run, asked))
    assert extractor.figure == "FID"
    features = extractor(images(2))
    assert features.shape == (2, 2048)
    assert torch.isfinite(features).all()


def test_inception_weights_that_would_be_unpickled_are_refused(tmp_path):
    pytest.importorskip("torch_fidelity")
    run = make_run(tmp_path)

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    path = tmp_path / "evil.pth"
    torch.save({"weights": Evil()}, path)
    for file, message in ((path, "no plain tensor file"), (tmp_path / "missing.pth", "does not exist")):
        asked = {"evaluate.extractor": "inception", "evaluate.inception_weights": str(file)}
        with pytest.raises(ConfigError, match=message):
            build_extractor(under(run, asked))


class Halves(torch.nn.Module):
    """Mean of the upper and of the lower half."""

    def forward(self, images):
        return torch.stack([half.mean((1, 2, 3)) for half in images.split(images.shape[2] // 2, 2)], 1)


def script(network, path, shape):
    torch.jit.trace(network, torch.rand(2, *shape)).save(path)
    return {"evaluate.extractor": "file", "evaluate.extractor_file": str(path)}


def test_a_torchscript_file_judges_under_its_own_name(tmp_path):
    run = make_run(tmp_path)
    path = tmp_path / "halves.pt"
    extractor = build_extractor(under(run, script(Halves(), path, run.shape)))
    assert (extractor.figure, extractor.accuracy, extractor.sha256) == ("FD-halves", None, sha256(path.read_bytes()))
    pixels = images()
    expected = pixels.float().div(255).reshape(10, 2, 32).mean(2)
    torch.testing.assert_close(extractor(pixels), expected)


def test_a_files_network_goes_to_another_process(tmp_path):
    run = make_run(tmp_path)
    extractor = build_extractor(under(run, script(Halves(), tmp_path / "halves.pt", run.shape)))
    there = pickle.loads(pickle.dumps(extractor))  # noqa: S301 - made here
    assert there.describe() == extractor.describe()
    assert torch.equal(there(images()), extractor(images()))


def test_what_a_file_holds_decides_whether_an_evaluation_is_up_to_date(tmp_path):
    config = under(make_run(tmp_path), script(Halves(), tmp_path / "halves.pt", (1, 8, 8))).config
    first = judge_parts(config)
    (tmp_path / "elsewhere.pt").write_bytes((tmp_path / "halves.pt").read_bytes())
    assert judge_parts(override(config, {"evaluate.extractor_file": str(tmp_path / "elsewhere.pt")})) == first
    script(torch.nn.Flatten(), tmp_path / "halves.pt", (1, 8, 8))
    assert judge_parts(config) != first
    (tmp_path / "halves.pt").unlink()
    with pytest.raises(ConfigError, match=r"evaluate\.extractor_file: .*halves\.pt does not exist"):
        judge_parts(config)


def test_files_that_are_no_extractor_name_the_key(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / "text.pt").write_text("no network")
    flat = script(torch.nn.Flatten(0), tmp_path / "flat.pt", run.shape)
    large = script(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 4)), tmp_path / "large.pt", (1, 3, 3))
    for name, message in (
        ("missing.pt", "does not exist"),
        ("text.pt", "is no TorchScript file"),
        (flat["evaluate.extractor_file"], r"features \(2, k\): it returned \(128,\)"),
        (large["evaluate.extractor_file"], r"features \(2, k\)"),
    ):
        asked = {"evaluate.extractor": "file", "evaluate.extractor_file": str(tmp_path / name)}
        with pytest.raises(ConfigError, match=rf"evaluate\.extractor_file: .*{message}"):
            build_extractor(under(run, asked))
    for half in ({"evaluate.extractor": "file"}, {"evaluate.extractor_file": "a.pt"}):
        with pytest.raises(ConfigError, match=r"extractor_file: extractor=file and extractor_file=PATH go together"):
            under(run, half)


def test_a_second_extractor_adds_its_own_distance_and_changes_nothing_else(tmp_path):
    run = under(make_run(tmp_path), {"evaluate.second_extractor": "random"})
    reference = make_reference(run, "validation", "test")
    assert reference.second.figure == "FD-random"
    made, cpu = images(70), torch.device("cpu")
    both = reference.judge("test", 3, cpu).of_images(made)
    alone = Judge(reference.extractor, reference.features["test"], 3, cpu).of_images(made)
    second = random_convolutions(run)
    assert both.pop("fd_second") == pytest.approx(
        frechet_distance(second(made), second(load_split(run, "test").pixels)), rel=1e-6
    )
    assert both == pytest.approx(alone, rel=1e-6)
    assert make_reference(under(run, {"evaluate.second_extractor": "none"}), "test").second is None
    with pytest.raises(ConfigError, match="second_extractor: is random too"):
        under(run, {"evaluate.extractor": "random"})
    with pytest.raises(ConfigError, match="second_extractor: classifier is what the first is here"):
        make_reference(under(run, {"evaluate.second_extractor": "classifier"}), "test")
