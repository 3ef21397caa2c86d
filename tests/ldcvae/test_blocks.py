"""Directions by blocks of queries against all pairs at once: the same bits in one block, the same field in many."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from ldcvae.directions import blocks
from ldcvae.directions.blocks import row_blocks
from ldcvae.directions.kernels import KERNELS, distances_to, get_kernel, median_distance, spread, squared_distances
from ldcvae.directions.stein import stein_direction, svgd
from ldcvae.directions.two_sample import drift, score_difference

ALL = slice(None)


# What the directions were before they worked in blocks, verbatim but for checks and docstrings.


def old_squared_distances(x, y):
    centre = y.mean(0)
    x, y = x - centre, y - centre
    squares = torch.addmm((y * y).sum(1), x, y.T, alpha=-2.0)
    return (squares + (x * x).sum(1, keepdim=True)).clamp_(min=0.0)


def old_own_positions(n, rows, device):
    columns = torch.arange(n, device=device)[rows]
    return torch.arange(len(columns), device=device), columns


def old_slope(name, squares, bandwidth):
    if name == "rbf":
        return torch.exp(squares / (-2.0 * bandwidth**2)) / (-(bandwidth**2))
    if name == "imq":
        return (1.0 + squares / bandwidth**2).pow(-1.5) / (-(bandwidth**2))
    distance = squares.sqrt().clamp(min=1e-12)
    return torch.exp(-distance / bandwidth) / (-(bandwidth * distance))


def old_stein_direction(particles, score, bandwidths, kernel="rbf", *, self_term=True, normalise=False, rows=ALL):
    kernel = get_kernel(kernel) if isinstance(kernel, str) else kernel
    n = particles.shape[0]
    at = ALL if normalise else rows
    queries = particles[at]
    squares = old_squared_distances(queries, particles)
    own, zero = old_own_positions(n, at, particles.device), particles.new_zeros(())
    direction = torch.zeros_like(queries)
    for bandwidth in bandwidths:
        value, slope = kernel.value(squares, bandwidth), old_slope(kernel.name, squares, bandwidth)
        if not self_term:
            value = value.index_put(own, zero)
        count = n if self_term else n - 1
        # slope · (zⱼ - zⱼ) is zero, but a cusped kernel's slope is huge there and rounding would not cancel.
        slope = slope.index_put(own, zero)
        phi = value @ score + slope @ particles - slope.sum(1, keepdim=True) * queries
        direction += phi / (value.sum() / n if normalise else count)
    return (direction[rows] if normalise else direction) / len(bandwidths)


def old_mean_shift(squares, bandwidth, points):
    return torch.softmax(squares / (-2.0 * bandwidth**2), dim=1) @ points


def old_score_difference(particles, targets, bandwidths, *, smooth=False, rows=ALL):
    # Smoothing averages the field over all particles, so then every rank needs the field at all of them.
    at = ALL if smooth else rows
    own = old_own_positions(len(particles), at, particles.device)
    infinity = particles.new_full((), float("inf"))
    to_particles = old_squared_distances(particles[at], particles)
    to_targets = old_squared_distances(particles[at], targets).index_put(own, infinity)
    to_others = to_particles.index_put(own, infinity)
    direction = torch.zeros_like(particles[rows])
    for bandwidth in bandwidths:
        field = old_mean_shift(to_targets, bandwidth, targets) - old_mean_shift(to_others, bandwidth, particles)
        direction += old_mean_shift(to_particles[rows], bandwidth, field) if smooth else field
    return direction / len(bandwidths)


def old_drift(particles, targets, temperatures, *, rows=ALL):
    n = len(particles)
    own = old_own_positions(n, ALL, particles.device)
    infinity = particles.new_full((), float("inf"))
    distances = torch.cat(
        [old_squared_distances(particles, side).sqrt().index_put(own, infinity) for side in (targets, particles)],
        dim=1,
    )
    direction = torch.zeros_like(particles)
    for temperature in temperatures:
        logits = distances / -temperature
        log_rows, log_columns = logits.logsumexp(1, keepdim=True), logits.logsumexp(0, keepdim=True)
        weights = torch.exp(logits - 0.5 * (log_rows + log_columns))
        of_targets, of_particles = weights[:, :n], weights[:, n:]
        field = (of_targets @ targets) * of_particles.sum(1, keepdim=True)
        field -= (of_particles @ particles) * of_targets.sum(1, keepdim=True)
        direction += field / field.square().mean().sqrt().clamp(min=1e-12)
    return direction[rows] / len(temperatures)


def stein_pair(**options):
    # The new ones go about the particles' mean by themselves.
    return [
        lambda z, y, h, rows: old_stein_direction(z - z.mean(0), y - z, h, rows=rows, **options),
        lambda z, y, h, rows: stein_direction(z, y - z, h, rows=rows, **options),
    ]


def pair(old, new, **options):
    return [
        lambda z, y, h, rows: old(z - z.mean(0), y - z.mean(0), h, rows=rows, **options),
        lambda z, y, h, rows: new(z, y, h, rows=rows, **options),
    ]


# Name: (direction at once, direction by blocks), each of (particles, targets, bandwidths, rows).
DIRECTIONS = {
    f"stein {kernel}{' self' * self_term}{' normalised' * normalise}": stein_pair(
        kernel=kernel, self_term=self_term, normalise=normalise
    )
    for kernel in KERNELS
    for self_term in (False, True)
    for normalise in (False, True)
} | {
    "score_difference": pair(old_score_difference, score_difference),
    "score_difference smooth": pair(old_score_difference, score_difference, smooth=True),
    "drift": pair(old_drift, drift),
}
every_direction = pytest.mark.parametrize("name", DIRECTIONS)


def points(n, d, dtype=torch.float32, seed=0):
    """Particles and targets of two laws that overlap."""
    generator = torch.Generator().manual_seed(seed)
    z, y = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return z.to(dtype), (1.2 * y + 0.3).to(dtype)


def widths(d):
    return [0.3 * d**0.5, torch.tensor(0.8 * d**0.5)]  # numbers and 0-d tensors, as the sampler phase passes


def relative(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@every_direction
@pytest.mark.parametrize(
    ("n", "dtype"), [(64, torch.float32), (512, torch.float32), (600, torch.float32), (200, torch.float64)]
)
def test_one_block_is_the_old_function_to_the_bit(name, n, dtype):
    old, new = DIRECTIONS[name]
    for d in (2, 16):
        z, y = points(n, d, dtype, seed=d)
        for rows in (ALL, slice(n // 2, n)):
            got, expected = new(z, y, widths(d), rows), old(z, y, widths(d), rows)
            if name == "drift":  # whose weights are made of fewer exponentials now
                assert relative(got, expected) < (1e-5 if dtype == torch.float32 else 1e-12)
            else:
                assert torch.equal(got, expected)


@every_direction
@pytest.mark.parametrize("d", [2, 16, 64])
@pytest.mark.parametrize("size", [1, 7, 50])
def test_many_blocks_give_the_field_of_all_pairs(name, d, size, monkeypatch):
    n = 130
    old, new = DIRECTIONS[name]
    z, y = points(n, d, torch.float64)
    expected = old(z, y, widths(d), ALL)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 6 * n * 8 * size)
    got = new(z, y, widths(d), ALL)
    # Not rounding alone: a particle's distance to itself is its square root, and so the Laplace kernel's value there.
    assert relative(got, expected) < 1e-7
    single = new(z.float(), y.float(), widths(d), ALL)
    # A sum of terms that cancel: the old function in single precision is as far from the exact one.
    assert relative(single, expected) < max(1e-5, 3 * relative(old(z.float(), y.float(), widths(d), ALL), expected))


@pytest.mark.parametrize("size", [7, 300])
@pytest.mark.parametrize("temperature", [0.3, 0.02, 0.002])
def test_drift_of_outliers_is_that_of_the_logarithms(temperature, size, monkeypatch):
    """Pairs far from all others, whose weights are no numbers beside those of the rest, and rows that see nobody."""
    n = 130
    z, y = points(n, 8, torch.float64)
    z[:3], y[:3] = 40.0 * z[:3], 40.0 * z[:3] + 0.1
    z[3] = 25.0
    y[4] = -30.0
    expected = old_drift(z, y, [temperature])
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * 2 * n * 8 * size)
    assert relative(drift(z, y, [temperature]), expected) < 1e-7
    single = drift(z.float(), y.float(), [temperature])
    assert relative(single, expected) < max(
        1e-4, 3 * relative(old_drift(z.float(), y.float(), [temperature]), expected)
    )


@pytest.mark.parametrize("blocks", [False, True])
def test_drift_of_ranks_that_tell_each_other_sums_is_that_of_one(blocks, monkeypatch):
    """Two threads as two ranks: each computes its own rows, and waits for the other's part of the sums."""
    if blocks:
        monkeypatch.setattr("ldcvae.directions.blocks.BLOCK_BYTES", 20_000)
    noise = torch.Generator().manual_seed(0)
    z, y = torch.randn(40, 3, generator=noise), torch.randn(40, 3, generator=noise) + 0.5
    barrier, told, found = threading.Barrier(2, timeout=60), [None, None], {}

    def rank(number):
        def gather(part):
            told[number] = part
            barrier.wait()
            both = torch.stack(told)
            barrier.wait()
            return both

        rows = slice(20 * number, 20 * number + 20)
        found[number] = drift(z, y, [0.3, 1.0], rows=rows, gather=gather)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = torch.cat([found[0], found[1]])
    torch.testing.assert_close(together, drift(z, y, [0.3, 1.0]), rtol=1e-5, atol=1e-6)


def test_drift_takes_draws_that_are_attached_to_a_net():
    z, y = points(16, 3)
    attached = z.clone().requires_grad_()
    assert torch.equal(drift(attached, y, [0.5]), drift(z, y, [0.5]))


@every_direction
def test_rows_of_several_ranks_make_up_the_field(name, monkeypatch):
    z, y = points(120, 3, torch.float64)
    old, new = DIRECTIONS[name]
    expected = old(z, y, widths(3), ALL)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 120 * 8 * 60)
    for ranks in (1, 2, 3, 8):
        rows = [slice(rank * 120 // ranks, (rank + 1) * 120 // ranks) for rank in range(ranks)]
        parts = torch.cat([new(z, y, widths(3), part) for part in rows])
        assert relative(parts, expected) < 1e-7
    assert new(z, y, widths(3), slice(5, 5)).shape == (0, 3)


# Not the Laplace kernel under Stein: its slope at particles that coincide is what rounding makes of their distance.
@pytest.mark.parametrize("name", [name for name in DIRECTIONS if "laplace" not in name])
def test_points_that_coincide_and_far_from_the_origin(name, monkeypatch):
    z, y = points(40, 2, torch.float64)
    z, y = torch.cat([z, z]) + 100.0, torch.cat([y, z]) + 100.0
    old, new = DIRECTIONS[name]
    expected = old(z, y, [0.5], ALL)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    assert expected.isfinite().all()
    assert relative(new(z, y, [0.5], ALL), expected) < 1e-5


def test_score_difference_by_blocks_vanishes_when_the_laws_agree(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64 * 8 * 40)
    check_vanishes(lambda z, y: score_difference(z, y, [0.3, 1.0]))


def test_drift_by_blocks_vanishes_when_the_laws_agree(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64 * 8 * 40)
    check_vanishes(lambda z, y: drift(z, y, [0.3, 1.0]))


def check_vanishes(field):
    """At fixed queries the mean over fresh draws of both sides is within 4.5 standard errors of zero."""
    n, repeats = 64, 400
    fixed, _ = points(8, 2, torch.float64, seed=10**6)
    fields = []
    for repeat in range(repeats):
        z, _ = points(n - 8, 2, torch.float64, seed=2 * repeat)
        y, _ = points(n - 8, 2, torch.float64, seed=2 * repeat + 1)
        fields.append(field(torch.cat([fixed, z]), torch.cat([fixed, y]))[:8])
    values = torch.stack(fields)
    assert (values.mean(0).abs() < 4.5 * values.std(0) / repeats**0.5).all()
    z, _ = points(n, 2, torch.float64)
    assert field(z, z.clone()).abs().max() < 1e-12  # the same points on both sides: zero, and not in expectation


def test_stein_direction_by_blocks_vanishes_at_its_fixed_point(monkeypatch):
    """Stein's identity: with draws of the target itself the direction at any point has expectation zero."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64 * 8 * 40)
    fields = []
    for repeat in range(400):
        z, _ = points(64, 2, torch.float64, seed=repeat)
        z[:8] = points(8, 2, torch.float64, seed=10**6)[0]
        fields.append(stein_direction(z, -z, [0.7], self_term=False)[:8] * 63)
    # The seven other fixed points are not drawn from the target; what they contribute is known.
    z = points(8, 2, torch.float64, seed=10**6)[0]
    values = torch.stack(fields) - stein_direction(z, -z, [0.7], self_term=False) * 7
    assert (values.mean(0).abs() < 4.5 * values.std(0) / 20).all()


def test_blocks_cover_all_queries_within_the_bytes(monkeypatch):
    like = torch.zeros((), dtype=torch.float64)
    for count in (0, 1, 5, 1000):
        for limit in (1, 8 * 100 * 3 * 7, 10**9):
            monkeypatch.setattr(blocks, "BLOCK_BYTES", limit)
            cut = row_blocks(count, 100, 3, like)
            assert [i for part in cut for i in range(count)[part]] == list(range(count))
            largest = max(part.stop - part.start for part in cut)
            assert largest * 100 * 3 * 8 <= limit or largest == 1
    assert row_blocks(1000, 100, 3, like) == [slice(0, 1000)]


def test_distances_by_blocks_are_the_distances():
    z, y = points(30, 4)
    squares = distances_to(y)
    assert torch.equal(torch.cat([squares(z)]), squared_distances(z, y))
    torch.testing.assert_close(torch.cat([squares(part) for part in z.split(7)]), squared_distances(z, y))
    with pytest.raises(ValueError, match=r"\(m, d\) points"):
        distances_to(torch.zeros(3))


def test_the_median_of_many_points_is_taken_over_some():
    z, _ = points(9000, 3)
    assert len(spread(z)) == 1800  # every fifth
    assert spread(z[:2048]) is not None
    assert len(spread(z[:2048])) == 2048
    squares = squared_distances(z[:3000], z[:3000])
    off_diagonal = squares[~torch.eye(3000, dtype=torch.bool)].sqrt().median()
    assert float(median_distance(z)) == pytest.approx(float(off_diagonal), rel=0.02)
    moved = svgd(z, lambda points: -points, steps=1)
    assert moved.isfinite().all()


MEASURE = """
import torch
from pathlib import Path
from ldcvae.directions.stein import stein_direction
from ldcvae.directions.two_sample import drift, score_difference

def megabytes(key):  # VmHWM and not getrusage: that one's peak includes the parent's at the fork
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":")) / 1024

torch.set_num_threads(1)
n = 8192
z, y = torch.randn(2, n, 16, generator=torch.Generator().manual_seed(0))
score_difference(z[:64], y[:64], [1.0])
before = megabytes("VmHWM")
stein_direction(z, -z, [0.5, 1.0, 2.0], self_term=False, normalise=True)
print(megabytes("VmHWM") - before)
score_difference(z, y, [1.0], smooth=True)
print(megabytes("VmHWM") - before)
score_difference(z, y, [1.0], rows=slice(0, 1000))
print(megabytes("VmHWM") - before)
drift(z, y, [1.0])
print(megabytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_memory_of_many_particles_is_bounded():
    """8,192 particles: the matrices of all pairs would take 256 MiB each, five or six of them at a time."""
    done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
    peaks = [float(line) for line in done.stdout.split()]
    assert len(peaks) == 4
    assert max(peaks) < 250, f"MiB after stein, smooth, score_difference, drift: {peaks}"


def test_a_gpu_gets_larger_blocks_as_each_of_its_kernels_has_to_be_started():
    on_gpu = SimpleNamespace(is_cuda=True, element_size=lambda: 4)
    here, there = (len(blocks.row_blocks(65536, 2 * 65536, 4, like)) for like in (torch.zeros(()), on_gpu))
    assert here / there == pytest.approx(16, rel=0.02)
    assert (
        max(part.stop - part.start for part in blocks.row_blocks(65536, 2 * 65536, 4, on_gpu)) * 2**17 * 16 <= 2**30
    )
