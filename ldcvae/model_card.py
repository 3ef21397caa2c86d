"""The card that goes with a model's weights: what it is, how it was made, how good it is, what it is not for."""

import hashlib
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

model = LDCVAE.from_pretrained("FOLDER"{pair})  # the folder of this file, or hub:USER/MODEL
images = model.sample(16{drawn})  # (16, {shape}), in [0, 1]
```

## How it was made

- Data: {data}.
- {networks}.
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
    body = _TEXT.format(
        size=f"{height}x{width} pixels, {channels} channel{'s' * (channels > 1)}",
        shape=", ".join(str(side) for side in config.image_shape),
        data=data or "not recorded",
        drawn="" if config.temperature == 1 else f", temperature={config.temperature:g}",
        pair=", encoder=encoder, decoder=decoder" if config.network == "custom" else "",
        networks=_networks(config),
        sampler_depth=config.sampler_depth,
        sampler_width=config.sampler_width,
        base=f"a mixture of {components} Gaussians{places}" if components else "N(0, I)",
        figures=table,
    )
    return f"{body}\n<!-- ldcvae {_digest(body)} -->\n"


def _digest(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()[:16]


def _networks(config: LDCVAEConfig) -> str:
    """What makes and takes the latents."""
    dimensions = f"Latents of {config.latent_dim} dimensions"
    if config.functions:
        return f"{dimensions}; encoder and decoder of another library, whose weights are not in this folder"
    own = config.network == "custom"
    network = "networks of their own code" if own else f"network {config.network}, width {config.width}"
    depth = "" if own else f", depth {config.depth}"
    decoder = (config.decoder_note or "decoder as phase 1 left it").capitalize()
    loss = f"likelihood {config.likelihood},\n  lambda = {config.inverse_temperature:g}"
    return f"{dimensions}; {network}{depth}; {loss}.\n- {decoder}"


def remove_own_card(folder: Path) -> None:
    """Remove README.md if it is as `card_body` made it, which the digest at its end tells.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "README.md").write_text("A card that somebody has written.")
        >>> remove_own_card(folder)
        >>> (folder / "README.md").exists()
        True
    """
    card = folder / "README.md"
    if not card.is_file():
        return
    text, marker, digest = card.read_text(errors="replace").rpartition("<!-- ldcvae ")
    before, heading, body = text.partition("# LDC-VAE for images of ")
    before = before.strip()  # what the hub puts on top, and nobody's words
    ours = before.startswith("---") and before.endswith("---")
    if marker and ours and digest.removesuffix("-->\n").strip() == _digest(heading + body):
        card.unlink()
