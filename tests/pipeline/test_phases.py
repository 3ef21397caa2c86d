"""Both phases without Ray: resuming, several ranks, averaged weights, every key that steers them."""

import copy
import dataclasses
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ldcvae.encodings import Encodings
from ldcvae.model import LDCVAE
from ldcvae.networks import build_decoder, build_encoder
from ldcvae.training.autoencoder import AutoencoderPhase, resolve_auto, use_memory_format
from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.epochs import EpochPhase
from ldcvae.training.heap import peak_mb, reset_peak
from ldcvae.training.monitor import LossMonitor, NonFiniteLossError
from ldcvae.training.phase import Cast
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.world import World
from pipeline.config.errors import PipelineError
from pipeline.config.load import load_config
from pipeline.store.checkpoint import load_state, save_state
from pipeline.store.folder import Folder
from pipeline.store.model import BEFORE_FILE, BEST_FILES, build_model, publish, write_before, write_best

SMALL = [
    "model.width=16",
    "model.depth=1",
    "model.latent_dim=4",
    "sampler.width=16",
    "sampler.depth=1",
    "sampler.particles=32",
    "sampler.steps=20",
    "sampler.base=normal",
    "train.epochs=4",
    "train.batch_size=16",
    "train.bf16=false",
    "train.channels_last=false",
    "train.compile=false",
]


def pixels(n: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)


def first_phase(*overrides: str, world: World | None = None, images: torch.Tensor | None = None) -> AutoencoderPhase:
    config = load_config(None, SMALL + list(overrides))
    torch.manual_seed(config.seed)
    model = build_model(config, (1, 8, 8))
    images = pixels() if images is None else images
    return AutoencoderPhase(model, images, pixels(16, seed=1), config.train, world or World(), config.seed)


def second_phase(
    *overrides: str, world: World | None = None, kept: dict | None = None, other: float = 0.0
) -> SamplerPhase:
    """Phase 2, from a checkpoint where it is given; `other` is by how much this machine's encodings differ."""
    config = load_config(None, SMALL + list(overrides))
    torch.manual_seed(config.seed)
    model = build_model(config, (1, 8, 8))
    generator = torch.Generator().manual_seed(2)
    encodings, held_out = (
        Encodings(torch.randn(n, 4, generator=generator).exp() * (1.0 + other), torch.full((n, 4), -2.0))
        for n in (200, 50)
    )
    if kept is not None:
        model.load_state_dict(kept["model"])
    begun = kept["phase"] if kept is not None else None
    return SamplerPhase(model, encodings, held_out, config.sampler, world or World(), config.seed, state=begun)


def fitted(phase: SamplerPhase) -> dict[str, torch.Tensor]:
    """What phase 2 fits before its first step."""
    return {"unit": phase.unit, **dict(phase.model.named_buffers())}


def weights(phase) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in phase.network.parameters()])


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.objective=svgd"],
        ["train.objective=elbo"],
        # Whose weights lie in memory as a checkpoint does not keep them.
        ["model.network=conv", "model.width=4", "train.channels_last=true", "train.fused=true"],
    ],
    ids=["svgd", "elbo", "channels last"],
)
def test_a_resumed_autoencoder_follows_the_same_path(tmp_path, overrides):
    straight = first_phase(*overrides)
    list(straight.epochs())
    killed = first_phase(*overrides)
    for epoch in killed.epochs():
        if epoch == 2:
            save_state({"model": killed.model.state_dict(), "phase": killed.state()}, tmp_path)
            break
    resumed = first_phase(*overrides)
    state = load_state(tmp_path)
    resumed.model.load_state_dict(state["model"])
    resumed.load(state["phase"])
    assert list(resumed.epochs()) == [3, 4]
    assert torch.equal(weights(resumed), weights(straight))
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.averaged.parameters(), straight.averaged.parameters(), strict=True)
    )
    timing = {"seconds", "time", "images_per_s"}
    assert [{k: v for k, v in r.items() if k not in timing} for r in resumed.history] == [
        {k: v for k, v in r.items() if k not in timing} for r in straight.history
    ]


@pytest.mark.parametrize("overrides", [[], ["decoder.adaptive=true", "decoder.sampler_draws=0.5"]])
def test_a_resumed_decoder_follows_the_same_path(tmp_path, overrides):
    overrides = ["train.channels_last=true", "train.fused=true", *overrides]
    straight = between(*overrides)
    list(straight.blocks(3))
    killed = between(*overrides)
    for step in killed.blocks(3):
        if step == 3:
            save_state({"model": killed.model.state_dict(), "phase": killed.state()}, tmp_path)
            break
    resumed = between(*overrides, kept=load_state(tmp_path))
    assert list(resumed.blocks(3)) == [4, 7, 8]
    for one, other in ((resumed.model, straight.model), (resumed.discriminator, straight.discriminator)):
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("base", ["normal", "gmm"])
def test_a_resumed_sampler_follows_the_same_path(tmp_path, base):
    overrides = (f"sampler.base={base}", "sampler.base_components=2")
    straight = second_phase(*overrides)
    list(straight.blocks(5))
    killed = second_phase(*overrides)
    next(killed.blocks(10))
    save_state({"model": killed.model.state_dict(), "phase": killed.state()}, tmp_path)
    resumed = second_phase(*overrides, kept=load_state(tmp_path))
    assert list(resumed.blocks(5)) == [15, 20]
    assert torch.equal(weights(resumed), weights(straight))


def test_a_resumed_sampler_keeps_whitening_unit_and_base(tmp_path):
    """On another machine or number of workers, encodings have other last bits: nothing is fitted anew."""
    overrides = ("sampler.base=gmm", "sampler.base_components=2")
    killed = second_phase(*overrides)
    next(killed.blocks(10))
    save_state({"model": killed.model.state_dict(), "phase": killed.state()}, tmp_path)
    fresh = fitted(second_phase(*overrides, other=1e-3))
    resumed = fitted(second_phase(*overrides, other=1e-3, kept=load_state(tmp_path)))
    for name, tensor in fitted(killed).items():
        assert torch.equal(resumed[name], tensor), name
    assert not torch.equal(fresh["base_means"], resumed["base_means"])
    assert not torch.equal(fresh["unit"], resumed["unit"])


@pytest.mark.parametrize("choice", ["auto", "false"])
def test_what_goes_on_behind_the_first_phase_encodes_as_after_it(choice):
    """To the bit, though the phase that gives the networks their memory format is not made again."""
    config = load_config(None, [*SMALL, "model.network=conv", "model.width=8", f"train.channels_last={choice}"])
    after = build_model(config, (1, 8, 8))
    AutoencoderPhase(after, pixels(), pixels(), config.train, World(), config.seed)
    behind = build_model(config, (1, 8, 8))
    use_memory_format(behind, config.train)
    behind.load_state_dict(after.state_dict())
    for one, other in zip(after.parameters(), behind.parameters(), strict=True):
        assert one.stride() == other.stride()
    encodings = [encode_split(model.eval(), pixels()) for model in (after, behind)]
    assert torch.equal(encodings[0].mean, encodings[1].mean)
    assert torch.equal(encodings[0].log_variance, encodings[1].log_variance)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    save_state({"x": torch.ones(3)}, tmp_path)
    content = bytearray((tmp_path / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "tensors.safetensors").write_bytes(content)
    with pytest.raises(PipelineError, match="sha256"):
        load_state(tmp_path)
    (tmp_path / "state.json").unlink()
    with pytest.raises(PipelineError, match="incomplete"):
        load_state(tmp_path)


def test_a_checkpoint_takes_no_memory_beside_the_state(tmp_path):
    state = {"model": {"a": torch.rand(25_000_000)}, "moments": [torch.rand(25_000_000)]}  # 200 MB
    reset_peak()
    before = peak_mb()
    save_state(state, tmp_path)
    assert peak_mb() - before < 50
    loaded = load_state(tmp_path)
    assert torch.equal(loaded["model"]["a"], state["model"]["a"])
    assert torch.equal(loaded["moments"][0], state["moments"][0])


def test_tensors_that_share_memory_come_back_apart(tmp_path):
    whole = torch.arange(6.0)
    state = {
        "tied": [whole, whole],
        "part": whole[2:4],
        "turned": torch.arange(6).reshape(2, 3).T,
        "none": torch.ones(0),
    }
    save_state(state, tmp_path)
    loaded = load_state(tmp_path)
    for name in ("part", "turned", "none"):
        assert torch.equal(loaded[name], state[name])
    loaded["tied"][0] += 1
    assert torch.equal(loaded["tied"][1], whole)


def test_a_checkpoint_holds_plain_values_only(tmp_path):
    with pytest.raises(TypeError, match=r"state\.a\.0 is a set"):
        save_state({"a": [{1, 2}]}, tmp_path)


def between(*overrides: str, world: World | None = None, kept: dict | None = None) -> DecoderPhase:
    config = load_config(None, [*SMALL, "model.network=conv", "model.width=4", "decoder.epochs=2", *overrides])
    torch.manual_seed(config.seed)
    model, world = build_model(config, (1, 8, 8)).eval(), world or World()
    if kept is not None:
        model.load_state_dict(kept["model"])
    encodings = encode_split(model, pixels(), world)
    return DecoderPhase(
        model,
        pixels(),
        encodings,
        pixels(16, seed=1),
        config.decoder,
        world,
        config.seed,
        autoencoder=config.train,
        sampler=config.sampler,
        state=kept["phase"] if kept is not None else None,
    )


UNEVEN = ("decoder.judged=0.7", "decoder.sampler_draws=0.3", "decoder.noise=0.1")  # 5 and 6 images, 1 and 2 draws
PHASES = {
    "svgd": lambda world: first_phase("train.objective=svgd", world=world),
    "elbo": lambda world: first_phase("train.objective=elbo", "train.particles=2", world=world),
    "score_difference": lambda world: second_phase("sampler.direction=score_difference", world=world),
    "smooth": lambda world: second_phase("sampler.smooth=true", world=world),
    "drift": lambda world: second_phase("sampler.direction=drift", world=world),
    "stein": lambda world: second_phase("sampler.direction=stein", world=world),
    "decoder": lambda world: between(world=world),
    "decoder, a part is judged": lambda world: between(*UNEVEN, world=world),
    "decoder, adaptive": lambda world: between("decoder.adaptive=true", *UNEVEN, world=world),
}


def one_step(name: str, world: World) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the first step (averaged over ranks by DDP) and the weights after training a little."""
    phase = PHASES[name](world)
    phase._losses()
    trained = [p for group in phase.optimizer.param_groups for p in group["params"]]
    gradient = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    phase = PHASES[name](world)  # anew: the step has renewed what a discriminator's norm is estimated by
    steps = phase.epochs() if isinstance(phase, EpochPhase) else phase.blocks(10)
    next(steps)
    return gradient, weights(phase)


def rank_main(rank: int, port: int, output: str) -> None:
    """What each of two gloo ranks computes; this file, run as a script, is one rank."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"), DistributedDataParallel)
    results: dict = {name: one_step(name, world) for name in PHASES}
    overrides = ("sampler.base=gmm", "sampler.base_components=2")
    results["fitted"] = fitted(second_phase(*overrides, world=world, other=1e-3 * rank))
    encodings = encode_split(second_phase(world=world).model, pixels(7), world)
    results["encodings"] = (encodings.mean, encodings.log_variance)
    monitor = LossMonitor()
    monitor.add(0, {"loss": torch.tensor(1.0 if rank == 0 else float("nan"))})
    try:
        monitor.read(world)
    except NonFiniteLossError as error:
        results["monitor"] = str(error)
    torch.save(results, output)
    dist.barrier()
    dist.destroy_process_group()
    # Past the interpreter's shutdown, in which gloo's threads now and then abort a process that has done its work.
    os._exit(0)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, str(port), str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", PHASES)
def test_one_process_and_two_give_equal_gradients_and_weights(two_ranks, name):
    gradient, after = one_step(name, World())
    for rank in range(2):
        other_gradient, other_after = two_ranks[rank][name]
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(other_after, after, rtol=2e-3, atol=2e-4)
    assert (two_ranks[0][name][1] == two_ranks[1][name][1]).all()


def test_ranks_share_one_whitening_unit_and_base(two_ranks):
    alone = fitted(second_phase("sampler.base=gmm", "sampler.base_components=2"))
    for name, tensor in alone.items():
        assert all(torch.equal(two_ranks[rank]["fitted"][name], tensor) for rank in range(2)), name


def test_ranks_encode_their_part_and_hold_the_whole(two_ranks):
    whole = encode_split(second_phase().model, pixels(7), World())
    for rank in range(2):
        mean, log_variance = two_ranks[rank]["encodings"]
        torch.testing.assert_close(mean, whole.mean)
        torch.testing.assert_close(log_variance, whole.log_variance)


def test_all_ranks_stop_when_one_has_a_bad_loss(two_ranks):
    assert [two_ranks[rank]["monitor"] for rank in range(2)] == ["loss is not finite at step 0"] * 2


STEERING = [
    ("first", "train.inverse_temperature", 40, 20),
    ("first", "train.particles", 4, 3),
    ("first", "train.objective", "svgd", "elbo"),
    ("first", "train.consistency", 0.0, 0.5),
    ("first", "train.learning_rate", 1e-3, 2e-3),
    ("first", "train.weight_decay", 0.0, 0.1),
    ("first", "seed", 0, 1),
    ("second", "sampler.bandwidths", "[0.2]", "[0.4]"),
    ("second", "sampler.bandwidth_unit", "neighbour", "absolute"),
    ("second", "sampler.particles", 32, 16),
    ("second", "sampler.posterior_noise", 1.0, 0.5),
    ("second", "sampler.direction", "score_difference", "drift"),
    ("second", "sampler.direction", "score_difference", "stein"),
    ("second", "sampler.smooth", "false", "true"),
    ("second", "sampler.base", "normal", "gmm"),
    ("second", "sampler.learning_rate", 1e-3, 2e-3),
]
STEIN = ["sampler.direction=stein"]
STEERING_STEIN = [
    ("sampler.kernel", "rbf", "imq"),
    ("sampler.kernel", "rbf", "laplace"),
    ("sampler.self_term", "false", "true"),
    ("sampler.floor", 0.3, 0.6),
]


@pytest.mark.parametrize(("phase", "key", "one", "other"), STEERING)
def test_every_key_steers_the_training(phase, key, one, other):
    results = []
    for value in (one, other):
        if phase == "first":
            run = first_phase(f"{key}={value}")
            next(run.epochs())
        else:
            run = second_phase(f"{key}={value}")
            next(run.blocks(3))
        results.append(weights(run))
    assert not torch.equal(*results)


@pytest.mark.parametrize(("key", "one", "other"), STEERING_STEIN)
def test_every_key_of_stein_steers_the_sampler(key, one, other):
    results = []
    for value in (one, other):
        run = second_phase(*STEIN, f"{key}={value}")
        next(run.blocks(3))
        results.append(weights(run))
    assert not torch.equal(*results)


def test_averaged_weights_of_a_short_run_are_close_to_the_last_ones():
    phase = first_phase("train.epochs=20", "train.ema=0.9999")
    initial = weights(phase)
    list(phase.epochs())
    average = torch.cat([p.flatten() for p in phase.averaged.parameters()])
    assert (average - weights(phase)).norm() < 0.35 * (initial - weights(phase)).norm()
    phase.adopt_average()
    assert torch.equal(average, weights(phase))


def test_without_ema_the_last_weights_are_kept():
    phase = first_phase("train.ema=0")
    assert phase.averaged is phase.network
    assert phase.state()["average"] is None


def test_a_bad_image_stops_training_with_step_and_term():
    phase = first_phase("train.inverse_temperature=1e30", "train.learning_rate=1e30", "train.objective=elbo")
    with pytest.raises(NonFiniteLossError) as caught:
        list(phase.epochs())
    assert caught.value.term in ("loss", "reconstruction", "kl")
    assert len(phase.history) == caught.value.step // phase.steps_per_epoch
    assert len(phase.batch_indices(caught.value.step)) == phase.batch


def test_monitor_names_the_first_step_and_the_most_specific_term():
    monitor = LossMonitor()
    nan, one = torch.tensor(float("nan")), torch.tensor(1.0)
    for step, (kl, reconstruction) in enumerate([(one, one), (one, nan), (nan, nan)]):
        monitor.add(step, {"loss": kl + reconstruction, "reconstruction": reconstruction, "kl": kl})
    with pytest.raises(NonFiniteLossError) as caught:
        monitor.read()
    assert (caught.value.step, caught.value.term) == (1, "reconstruction")


def test_training_learns():
    shades = torch.arange(0, 256, 4, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    phase = first_phase("train.epochs=100", "train.learning_rate=1e-2", images=shades)
    list(phase.epochs())
    assert phase.history[-1]["reconstruction"] < 0.2 * phase.history[0]["reconstruction"]
    sampler = second_phase("sampler.steps=300", "sampler.particles=128")
    before = sampler.validation_figures()["validation_mmd2"]
    list(sampler.blocks(300))
    assert sampler.history[-1]["validation_mmd2"] < 0.5 * before


def test_auto_settings_follow_the_device():
    config = load_config(None, []).train
    conv, mlp = (build_encoder(name, (1, 8, 8), 4, 8, 1) for name in ("conv", "mlp"))
    cpu = resolve_auto(config, torch.device("cpu"), conv)
    assert (cpu.bf16, cpu.channels_last, cpu.fused, cpu.compile) == (False, True, True, False)
    assert resolve_auto(config, torch.device("cpu"), mlp).channels_last is False
    gpu = resolve_auto(config, torch.device("cuda"), conv)
    assert (gpu.bf16, gpu.compile) == (torch.cuda.is_bf16_supported(including_emulation=False), False)
    kept = resolve_auto(config.model_copy(update={"fused": False}), torch.device("cuda"), conv)
    assert kept.fused is False
    # The phase does it itself.
    assert first_phase("train.channels_last=auto", "train.bf16=auto", "train.compile=auto").config == resolve_auto(
        load_config(None, SMALL).train, torch.device("cpu"), mlp
    )
    assert first_phase("train.channels_last=auto", "model.network=conv").config.channels_last is True


def test_bf16_is_not_chosen_where_it_is_emulated(monkeypatch):
    asked = []

    def supported(including_emulation=True):
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    network = build_encoder("mlp", (1, 8, 8), 4, 8, 1)
    assert resolve_auto(load_config(None, []).train, torch.device("cuda"), network).bf16 is False
    assert asked == [False]


def dtypes(network):
    """Of the outputs of every layer with weights, in the order of their calls, filled by each pass."""
    seen = []
    for layer in network.modules():
        if not list(layer.children()) and list(layer.parameters()):
            layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
    return seen


@pytest.mark.parametrize("name", ["mlp", "conv", "resnet", "spatial"])
@pytest.mark.parametrize("build", [build_encoder, build_decoder])
def test_under_bf16_the_last_layers_compute_in_float32(name, build):
    torch.manual_seed(0)
    d = 64 if name == "spatial" else 4
    network = build(name, (1, 16, 16), d, 8, 1)
    x = torch.rand(8, 1, 16, 16) if build is build_encoder else torch.randn(8, d)
    plain = network(x)
    seen = dtypes(network)
    output = Cast(network, True)(x)
    assert output.dtype == torch.float32
    assert seen[-1] == torch.float32
    assert torch.bfloat16 in seen[:-1]
    assert not torch.equal(output, output.bfloat16().float())  # more than bfloat16 can tell
    torch.testing.assert_close(output, plain, atol=0.05, rtol=0.05)
    seen.clear()
    # Without autocast a network is called as it is.
    assert torch.equal(Cast(network, False)(x), plain)
    assert set(seen) == {torch.float32}


class _Own(nn.Module):
    """A user's network: calls its layers in another order than it registers them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.body = nn.Linear(4, 8)

    def forward(self, x):
        return self.head(self.body(x).relu())


class _Halved(nn.Sequential):
    """A sequential with a forward of its own."""

    def forward(self, x):
        return super().forward(x) / 2


@pytest.mark.parametrize(
    ("network", "last"),
    [
        (_Own(), torch.bfloat16),
        (_Halved(nn.Linear(4, 4)), torch.bfloat16),
        (nn.Sequential(nn.Linear(4, 4), _Own()), torch.bfloat16),
        (nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 4)), torch.float32),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).bfloat16()), torch.bfloat16),
        (nn.Sequential(nn.ReLU()), None),
    ],
)
def test_networks_of_ones_own_are_cast_too(network, last):
    x = torch.rand(8, 4)
    seen = dtypes(network)
    output = Cast(network, True)(x)
    assert output.dtype == torch.float32
    assert seen[-1:] == ([last] if last else [])
    # Its weights have the names and the number that they had.
    assert [name for name, _ in Cast(network, True).named_parameters()] == [
        f"network.{name}" for name, _ in network.named_parameters()
    ]


@pytest.mark.parametrize("option", ["bf16", "channels_last", "fused", "compile"])
def test_options_change_speed_not_results(option):
    results = []
    for value in ("false", "true"):
        # Compiling takes seconds a layer: the mlp has few.
        network = "mlp" if option == "compile" else "conv"
        overrides = [f"model.network={network}", "model.width=4", f"train.{option}={value}"]
        config = load_config(None, SMALL + overrides)
        torch.manual_seed(0)
        model = build_model(config, (1, 8, 8))
        phase = AutoencoderPhase(model, pixels(), pixels(16, seed=1), config.train, World(), 0)
        next(phase.epochs())
        results.append(weights(phase))
    tolerance = 0.02 if option == "bf16" else 2e-4
    torch.testing.assert_close(results[1], results[0], atol=tolerance, rtol=0.05)


def test_the_sampler_of_the_best_validation_is_kept(tmp_path):
    run, model = Folder(str(tmp_path)), second_phase().model
    before = copy.deepcopy(model.state_dict())
    for bias, validations in ((1.0, [3.0]), (2.0, [3.0, 2.0]), (3.0, [3.0, 2.0, 2.5])):
        sampler = copy.deepcopy(model.sampler)
        torch.nn.init.constant_(sampler.inner[-1].bias, bias)
        write_best(run, "ray-a", model, sampler, validations)
    best = LDCVAE.from_pretrained(tmp_path / "train/ray-a/best")
    assert best.sampler.inner[-1].bias.unique().tolist() == [2.0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_training_ends_with_its_own_files_though_another_ran_in_between(tmp_path):
    run, model = Folder(str(tmp_path)), second_phase().model
    name = next(iter(model.decoder.state_dict()))

    def works(training, bias):
        torch.nn.init.constant_(model.sampler.inner[-1].bias, bias)
        torch.nn.init.constant_(dict(model.decoder.named_parameters())[name], bias)
        write_best(run, training, model, model.sampler, [1.0])
        write_before(run, training, model)

    works("ray-a", 1.0)
    works("ray-b", 2.0)
    assert publish(run, "ray-b", before=True) == [*BEST_FILES, BEFORE_FILE]
    assert publish(run, "ray-a", before=False) == [*BEST_FILES]
    assert publish(run, "ray-a", before=True) == [*BEST_FILES, BEFORE_FILE]
    assert LDCVAE.from_pretrained(tmp_path / "train/best").sampler.inner[-1].bias.unique().tolist() == [1.0]
    assert load(run.read(BEFORE_FILE))[name].unique().tolist() == [1.0]


def test_rows_need_an_even_split():
    assert dataclasses.replace(World(), rank=1, size=2).rows(6) == slice(3, 6)
    with pytest.raises(ValueError, match="7 rows do not divide"):
        dataclasses.replace(World(), size=2).rows(7)


if __name__ == "__main__":
    rank_main(int(sys.argv[3]), int(sys.argv[1]), f"{sys.argv[2]}/{sys.argv[3]}")
