"""The card that goes with a model's weights: what it is, how it was made, how good it is, what it is not for."""

import json
from collections.abc import Mapping
from pathlib import Path

from ldcvae.config import LDCVAEConfig

__all__ = ["COLUMNS", "card_body", "remove_own_card"]

COLUMNS = ("precision", "recall", "density", "coverage")
"""Figures that a card shows beside the Fréchet distance."""

_TEXT = """# LDC-VAE for images of {size}

A variational autoencoder whose sampler net draws the latents that its decoder was trained on, in one forward pass
(latent distribution consistency VAE, [arXiv 2109.10640](https://arxiv.org/abs/2109.10640)).

```python
from ldcvae import LDCVAE

model = LDCVAE.from_pretrained("FOLDER")  # the folder of this file, or hub:USER/MODEL
images = model.sample(16{drawn})  # (16, {shape}), in [0, 1]
```

## How it was made

- Data: {data}.
- Latents of {d} dimensions; network {network}, width {width}, depth {depth}; likelihood {likelihood},
  lambda = {temperature:g}.
- {decoder}.
- Sampler net: {sampler_depth} residual layers of {sampler_width} units on {base}.

## How good it is

{figures}

## What it is not for

- It draws what its training images were, with their faults and gaps, and nothing else; it knows no labels, no text.
- Nothing keeps a draw from being close to a training image: compare distances to the nearest ones before you publish
  draws of data that are not yours to show.
- Images with an adversarially trained decoder have details that were not in the latents: they are not evidence of
  anything.
"""


def card_body(
    config: LDCVAEConfig,
    data: str | None = None,
    figures: Mapping[str, Mapping[str, float]] | None = None,
    judged: str = "",
) -> str:
    """The card of a model as Markdown.

    Args:
        config: of the model.
        data: what it was trained on; None: not known here.
        figures: generator -> its figures, `fd` and any of `COLUMNS`; None: it was not judged.
        judged: by what, and on which images.

    Example:
        >>> text = card_body(LDCVAEConfig((1, 8, 8)), "digits", {"sampler": {"fd": 1.25, "recall": 0.9}}, "on test")
        >>> "| sampler | 1.25 | – | 0.900 | – | – |" in text
        True
    """
    table = "It has not been judged."
    if figures:
        rows = [f"| latents | Fréchet distance | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
        for name, row in figures.items():
            cells = [f"{row[column]:.3f}" if row.get(column) is not None else "–" for column in COLUMNS]
            rows.append(f"| {name} | {row['fd']:.4g} | {' | '.join(cells)} |")
        table = "\n".join([f"{judged}\n" if judged else "", *rows]).strip()
    components = config.base_components
    places = f" of up to {config.base_centres} centres each" if config.base_centres > 1 else ""
    channels, height, width = config.image_shape
    return _TEXT.format(
        size=f"{height}x{width} pixels, {channels} channel{'s' * (channels > 1)}",
        shape=", ".join(str(side) for side in config.image_shape),
        data=data or "not recorded",
        drawn="" if config.temperature == 1 else f", temperature={config.temperature:g}",
        d=config.latent_dim,
        network=config.network,
        width=config.width,
        depth=config.depth,
        likelihood=config.likelihood,
        temperature=config.inverse_temperature,
        decoder=(config.decoder_note or "decoder as phase 1 left it").capitalize(),
        sampler_depth=config.sampler_depth,
        sampler_width=config.sampler_width,
        base=f"a mixture of {components} Gaussians{places}" if components else "N(0, I)",
        figures=table,
    )


def remove_own_card(folder: Path) -> None:
    """Remove README.md if it is what `card_body` says, without figures, of the model of the folder's config.json.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "README.md").write_text("A card that somebody has written.")
        >>> remove_own_card(folder)
        >>> (folder / "README.md").exists()
        True
    """
    card = folder / "README.md"
    try:
        content = json.loads((folder / "config.json").read_bytes())
        content["image_shape"] = tuple(content["image_shape"])
        if card_body(LDCVAEConfig(**content)) in card.read_text(errors="replace"):
            card.unlink()
    except (AttributeError, FileNotFoundError, KeyError, TypeError, ValueError):
        return  # there is none, or another program's
