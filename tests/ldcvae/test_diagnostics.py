import pytest
import torch

from ldcvae.metrics.diagnostics import kernel_stein_discrepancy, stein_ratio, variance_ratio


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_stein_ratio_of_gaussians_is_the_ratio_of_variances(scale):
    z = scale * normal(20_000, 3) + 5.0
    assert float(stein_ratio(z, -(z - 5.0))) == pytest.approx(scale**2, rel=0.02)


def test_variance_ratio_is_the_ratio_of_traces():
    x, y = normal(50, 2), 3 * normal(60, 2, seed=1)
    assert float(variance_ratio(x, y)) == pytest.approx(float(torch.cov(x.T).trace() / torch.cov(y.T).trace()))


def dense_ksd(z, score, h):
    """U-statistic of 1703.01717 with every derivative of the kernel from autograd."""
    n = len(z)

    def kernel(a, b):
        return (1 + (a - b).square().sum() / h**2).rsqrt()

    total = 0.0
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            a, b = z[i].clone().requires_grad_(), z[j].clone().requires_grad_()
            ga, gb = torch.autograd.grad(kernel(a, b), (a, b), create_graph=True)
            mixed = sum(torch.autograd.grad(ga[c], b, retain_graph=True)[0][c] for c in range(len(a)))
            total += float((kernel(a, b) * (score[i] @ score[j]) + score[i] @ gb + score[j] @ ga + mixed).detach())
    return total / (n * (n - 1))


def test_ksd_is_the_double_loop():
    z, score = normal(8, 3), normal(8, 3, seed=1)
    assert float(kernel_stein_discrepancy(z, score, 0.8)) == pytest.approx(dense_ksd(z, score, 0.8))


def test_ksd_is_unbiased_and_sees_a_shift_and_a_collapse():
    values = torch.stack([kernel_stein_discrepancy(z, -z) for z in (normal(100, 2, seed=s) for s in range(200))])
    assert float(values.mean().abs()) < 4 * float(values.std()) / 200**0.5
    assert float(values.min()) < 0
    z = normal(500, 2)
    assert float(kernel_stein_discrepancy(0.5 * z, -0.5 * z)) > 0.05
    assert float(kernel_stein_discrepancy(z + 1, -(z + 1))) > 0.3
