"""Where `sample`, `evaluate`, trials and cells compute: `train.device`, the same rule as for training."""

import torch

from pipeline.config.errors import ConfigError
from pipeline.config.sections import Config

__all__ = ["device_name", "process_device"]


def process_device(config: Config) -> torch.device:
    """The device of this process: its GPU where it sees one, unless `train.device` or `ray.num_gpus` says otherwise.

    Raises:
        ConfigError: if `train.device` is cuda and this process sees no GPU.

    Example:
        >>> from pipeline.config.load import load_config
        >>> process_device(load_config(None, ["train.device=cpu"]))
        device(type='cpu')
    """
    wanted = config.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device: 'cuda', but this process sees no GPU; give auto or cpu, or join a cluster with ray.address"
        )
    # Without GPUs in the local Ray its processes use none, and this one must make the same images as they.
    hidden = wanted == "auto" and config.ray.num_gpus == 0
    use = wanted != "cpu" and not hidden and torch.cuda.is_available()
    return torch.device("cuda" if use else "cpu")


def device_name(device: torch.device) -> str:
    """What manifests call a device: the GPU's name, or cpu.

    Example:
        >>> device_name(torch.device("cpu"))
        'cpu'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
