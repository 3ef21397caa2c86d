"""What could be within a mixture's components that Gaussians do not know; for `beyond_mixture.py`.

`ComponentFlow` warps the components by an affine coupling flow (Dinh et al. 2017, arXiv 1605.08803) that is told the
component, trained by maximum likelihood on draws of the posteriors and stopped where held-out latents liked it best.
It draws in one pass.
"""

import copy

import torch
from torch import Tensor, nn

from ldcvae.densities.gaussian import LOG_2PI, GaussianMixture
from ldcvae.training.phase import running_average
from ldcvae.training.world import seeded_weights

__all__ = ["ComponentFlow"]

_SHARES = 8  # components that a latent may be of
_LAYERS, _WIDTH, _EMBEDDING = 8, 256, 32
_DECAY, _EVERY = 0.995, 250


def _times(matrices: Tensor, which: Tensor, rows: Tensor) -> Tensor:
    """Each row (n, d) by its own of the matrices (K, d, d)."""
    return torch.cat(
        [torch.einsum("nij,nj->ni", matrices[k], x) for k, x in zip(which.split(1000), rows.split(1000), strict=True)]
    )


class _Coupling(nn.Module):
    """Affine couplings of (n, d) rows, each with its component's embedding; the identity at first."""

    def __init__(self, components: int, dim: int):
        super().__init__()
        self.half, rest = dim // 2, dim - dim // 2
        self.embedding = nn.Embedding(components, _EMBEDDING)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.orders = [torch.randperm(dim) for _ in range(_LAYERS)]
        self.layers = nn.ModuleList()
        for _ in range(_LAYERS):
            last = nn.Linear(_WIDTH, 2 * rest)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first = nn.Linear(self.half + _EMBEDDING, _WIDTH)
            self.layers.append(nn.Sequential(first, nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), last))

    def _scale_and_shift(self, layer: nn.Module, known: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = layer(torch.cat([known, told], 1)).chunk(2, 1)
        return 1.5 * torch.tanh(scale), shift

    def to_noise(self, y: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
        """Noise of rows, and the log determinant."""
        told, log_det = self.embedding(component), torch.zeros(len(y))
        for order, layer in zip(self.orders, self.layers, strict=True):
            known, other = y[:, order].split([self.half, y.shape[1] - self.half], 1)
            scale, shift = self._scale_and_shift(layer, known, told)
            y, log_det = torch.cat([known, (other + shift) * scale.exp()], 1), log_det + scale.sum(1)
        return y, log_det

    def from_noise(self, y: Tensor, component: Tensor) -> Tensor:
        """Rows of noise."""
        told = self.embedding(component)
        for order, layer in zip(self.orders[::-1], reversed(self.layers), strict=True):
            known, other = y.split([self.half, y.shape[1] - self.half], 1)
            scale, shift = self._scale_and_shift(layer, known, told)
            y = torch.cat([known, other * (-scale).exp() - shift], 1)[:, order.argsort()]
        return y


class ComponentFlow:
    """A mixture whose components' Gaussians are warped by one flow that is told the component.

    Args:
        base: the mixture.
        means: (n, d) of the posteriors, in its coordinates.
        factors: (n, d) standard deviations, and (d, d): noise ε of a posterior is `(std · ε) @ matrix`.
        held_out: (m, d) latents that say when to stop.
        steps: of 1,024 draws.

    Attributes:
        nats: by how much held-out latents are likelier than under the base.
    """

    def __init__(
        self,
        base: GaussianMixture,
        means: Tensor,
        factors: tuple[Tensor, Tensor],
        held_out: Tensor,
        steps: int,
        seed: int = 0,
        batch: int = 1024,
    ):
        self.base, (std, matrix) = base, factors
        values, vectors = torch.linalg.eigh(base.covariances.double())
        self._root = ((vectors * values.sqrt()[:, None]) @ vectors.mT).float()
        self._inverse = ((vectors * values.rsqrt()[:, None]) @ vectors.mT).float()
        self._log_scale = (0.5 * values.log().sum(1)).float() + 0.5 * base.dim * LOG_2PI
        kept = min(_SHARES, len(base.means))
        log_joint, component = base.log_joint(means).topk(kept)
        shares = log_joint.softmax(1)
        self.weights = torch.zeros(len(base.means)).index_add_(0, component.flatten(), shares.flatten())
        self.weights /= self.weights.sum()
        known, whose = base.log_joint(held_out).topk(kept)
        before = float(known.logsumexp(1).mean())
        with seeded_weights(seed):
            network = _Coupling(len(base.means), base.dim)
        average = running_average(network, _DECAY, lambda: schedule.last_epoch)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
        noise = torch.Generator().manual_seed(seed)
        self.network, self.nats = copy.deepcopy(network), 0.0
        for step in range(1, steps + 1):
            row = torch.randint(len(means), (batch,), generator=noise)
            k = component[row, torch.multinomial(shares[row], 1, generator=noise)[:, 0]]
            drawn = means[row] + (std[row] * torch.randn(batch, base.dim, generator=noise)) @ matrix
            xi, log_det = network.to_noise(_times(self._inverse, k, drawn - base.means[k]), k)
            loss = (0.5 * xi.square().sum(1) - log_det).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            if step % _EVERY == 0 or step == steps:
                gain = self._log_likelihood(average.module, held_out, whose) - before
                if gain > self.nats:
                    self.network, self.nats = copy.deepcopy(average.module), gain

    @torch.no_grad()
    def _log_likelihood(self, network: _Coupling, z: Tensor, whose: Tensor) -> float:
        parts = []
        for k in whose.T:
            xi, log_det = network.to_noise(_times(self._inverse, k, z - self.base.means[k]), k)
            weight = self.weights[k].clamp(min=1e-12).log()
            parts.append(weight - 0.5 * xi.square().sum(1) + log_det - self._log_scale[k])
        return float(torch.stack(parts, 1).logsumexp(1).mean())

    @torch.no_grad()
    def draw(self, n: int, noise: torch.Generator) -> Tensor:
        """(n, d) draws."""
        k = torch.multinomial(self.weights, n, True, generator=noise)
        y = self.network.from_noise(torch.randn(n, self.base.dim, generator=noise), k)
        return self.base.means[k] + _times(self._root, k, y)
