"""How much each patch of a picture is looked at by a DINOv2 encoder: the saliency of PAPO's semantic masking.

PAPO (arXiv 2507.06448, semantic masking ablation): take the self-attention A [heads, N, N] of some layers, average over
heads, and let the saliency of patch j be the attention that it receives from the other patches,

    s_j = sum over patches i != j of A[i, j],

where the class token (and register tokens) in front of the patches are left out as sender and as receiver. Average s
over the layers. Each row of A sums to one over all tokens, so s_j lies in [0, number of patches).

Departures:
1. "Layers 6 to 9" counts from 0, as transformers returns them (the paper does not say).
2. The picture is shown to the encoder with sides rounded to whole patches, and reduced to `side` x `side` pixels in
   area if it is larger (our choice; the paper does not say).

The user names a folder or model id; weights are loaded on first use. The published weights have not been run here: the
tests run a randomly initialised Dinov2 of the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from mmrl.perception.pixels import checked
from mmrl.types import Now, View, ViewContext, require_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DinoSaliency:
    """The saliency of frames under a DINOv2 checkpoint."""

    path: str
    """Folder or model id of a Dinov2 model in transformers' format, e.g. facebook/dinov2-base."""
    layers: tuple[int, ...] = (6, 7, 8, 9)
    """Layers whose attention is averaged, counted from 0."""
    side: int = 518
    """Pictures of more than side * side pixels are reduced to about this area."""
    device: str = "cpu"
    """Where the encoder runs."""

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers) < 0 or self.side < 1:
            raise ValueError(
                f"DinoSaliency has layers {self.layers} and side {self.side}; name at least one layer, counted from 0, "
                "and a positive side."
            )

    def __call__(self, frames: Tensor) -> Tensor:
        """Score uint8 frames [F, 3, H, W]: float [F, h, w], one number per patch of the encoder."""
        config = self._encoder.config
        if max(self.layers) >= config.num_hidden_layers:
            raise ValueError(
                f"DinoSaliency.layers is {self.layers}, but {self.path} has the layers 0 to "
                f"{config.num_hidden_layers - 1}; name some of these."
            )
        checked(frames, "DinoSaliency")
        pixels = encoder_pixels(frames, config.patch_size, self.side).to(self.device)
        rows = pixels.shape[-2] // config.patch_size
        columns = pixels.shape[-1] // config.patch_size
        maps: list[Tensor] = []
        with torch.no_grad():
            for frame in pixels:  # one by one: attention weights of a whole clip would not fit
                attentions = self._attentions(frame[None])
                maps.append(received_attention(attentions, rows * columns))
        return torch.cat(maps).view(-1, rows, columns).to(frames.device)

    def _attentions(self, pixels: Tensor) -> Sequence[Tensor]:
        """The attention of the chosen layers, each [1, heads, N, N]."""
        attentions = self._encoder(pixel_values=pixels, output_attentions=True).attentions
        return [attentions[layer] for layer in self.layers]

    @cached_property
    def _encoder(self) -> PreTrainedModel:
        """The encoder with plain attention, since fused kernels do not return the weights."""
        from transformers import AutoModel

        model = AutoModel.from_pretrained(self.path, attn_implementation="eager")
        return model.to(self.device).eval()


def received_attention(attentions: Sequence[Tensor], patches: int) -> Tensor:
    """Average, over layers and heads, the attention each patch receives from the others: [B, patches].

    attentions: [B, heads, N, N] per layer, rows send and columns receive; the last `patches` tokens are the patches.
    """
    total = torch.zeros(())
    for attention in attentions:
        # The class token and registers stand in front: they are left out as senders and as receivers.
        among = attention.float().mean(1)[:, -patches:, -patches:]  # [B, n, n]
        from_itself = among.diagonal(dim1=1, dim2=2)
        total = total + among.sum(1) - from_itself
    return total / len(attentions)


def encoder_pixels(frames: Tensor, patch: int, side: int) -> Tensor:
    """Normalise frames for the encoder: float [F, 3, h * patch, w * patch], area at most about side * side."""
    height, width = frames.shape[-2:]
    scale = min(1.0, side / (height * width) ** 0.5)
    rows = max(round(height * scale / patch), 1)
    columns = max(round(width * scale / patch), 1)
    size = [rows * patch, columns * patch]
    resized = nn.functional.interpolate(
        frames.float() / 255.0, size=size, mode="bicubic", antialias=True
    )
    mean = torch.tensor(IMAGENET_MEAN, device=frames.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=frames.device).view(3, 1, 1)
    # Clamped, because bicubic interpolation overshoots at edges.
    return (resized.clamp(0.0, 1.0) - mean) / std


@dataclass(frozen=True)
class SeenBy(View):
    """A view that reads saliency, given the saliency of an encoder instead of the policy's own."""

    view: View
    """For example SaliencyMask(ratio=0.6)."""
    saliency: DinoSaliency
    """Scores the same frames."""

    reads_saliency: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_view("SeenBy.view", self.view)

    @property
    def changes_geometry(self) -> bool:
        """As the view says."""
        return self.view.changes_geometry

    @property
    def changes_order(self) -> bool:
        """As the view says."""
        return self.view.changes_order

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        return self.view(frames, replace(context, saliency=self.saliency(frames)), rng, now)
