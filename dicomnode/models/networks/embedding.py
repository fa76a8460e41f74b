"""The whole way from a grey slice to its vector: CE-Net encoder, Xception, halves, compaction.

One module so that training, packs and the node compute the same thing. Flip-averaged, each half L2-normalised before
they are joined (else the half with the higher variance decides every distance), then PCA, then L2. It holds no files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dicomnode.models.networks.cenet import CENetConfig, CENetEncoder
from dicomnode.models.networks.xception import Xception, XceptionConfig
from dicomnode.models.tensors import standardise


class Compaction(nn.Module):
    """PCA with components kept as one byte a value: [n, D] -> unit vectors [n, dim].

    Attributes
    ----------
    mean : float32 [D].
    components : int8 [dim, D]; row i times ``scale[i]`` is the i-th component.
    scale : float32 [dim].
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    def __init__(self, full_dim: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(full_dim))
        self.register_buffer("components", torch.zeros(dim, full_dim, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(dim))
        self._rows: Tensor | None = None

    def forward(self, full: Tensor) -> Tensor:
        if self._rows is None or self._rows.device != full.device:
            self._rows = self.components.to(full.device, torch.float32) * self.scale[:, None]
        return functional.normalize((full - self.mean) @ self._rows.T, dim=1)

    @torch.no_grad()
    def fit(self, full: Tensor) -> float:
        """Fit to rows [n, D] by the Gram trick (n is far below D); the share of variance that is kept.

        Raises
        ------
        ValueError
            Fewer rows than dimensions asked for.
        """
        dim = self.components.shape[0]
        if len(full) <= dim:
            raise ValueError(f"{dim} dimensions need more than {dim} images, not {len(full)}")
        mean = full.mean(0)
        centred = (full - mean).double()
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        values, vectors = values.flip(0)[:dim], vectors.flip(1)[:, :dim]
        rows = ((centred.T @ vectors) / values.clamp(min=1e-12).sqrt()).T
        # The sign of a component is arbitrary: fix it, so that two fits agree.
        signs = torch.sign(rows.gather(1, rows.abs().argmax(1, keepdim=True)))
        rows = rows * signs
        scale = rows.abs().amax(1) / 127
        self.mean.copy_(mean)
        self.components.copy_((rows / scale[:, None]).round().to(torch.int8))
        self.scale.copy_(scale)
        self._rows = None
        return float(values.sum() / (centred**2).sum())


class EmbeddingNet(nn.Module):
    """Encoder and Xception of a pack, with its compaction.

    Parameters
    ----------
    cenet, xception : architectures.
    side : int
        Side of the input in pixels; the grid is side / 32.
    dim : int
        Dimension of the vectors.
    """

    def __init__(self, cenet: CENetConfig, xception: XceptionConfig, side: int, dim: int) -> None:
        super().__init__()
        self.encoder = CENetEncoder(cenet)
        if xception.in_channels != self.encoder.out_channels:
            raise ValueError(
                f"the Xception takes {xception.in_channels} channels, the encoder gives {self.encoder.out_channels}"
            )
        self.xception = Xception(xception)
        self.side = side
        self.grid_side = side // 32
        self.full_dim = 2 * self.encoder.out_channels * self.grid_side**2
        self.compaction = Compaction(self.full_dim, dim)

    def halves(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [n, side, side] in 0..1 -> RMP encoding and Xception activation [n, C, h, w], flip-averaged."""
        x = standardise(images[:, None])
        both = torch.cat([x, x.flip(3)]).contiguous(memory_format=torch.channels_last)
        rmp = self.encoder(both)
        act = self.xception(rmp)
        n = len(images)
        return (rmp[:n] + rmp[n:].flip(3)) / 2, (act[:n] + act[n:].flip(3)) / 2

    def full(self, images: Tensor) -> Tensor:
        """The full embedding [n, full_dim]: both halves flattened, each of length 1, joined."""
        rmp, act = self.halves(images)
        return torch.cat([functional.normalize(rmp.flatten(1), dim=1), functional.normalize(act.flatten(1), dim=1)], 1)

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, side, side] in 0..1 -> unit vectors float32 [n, dim]."""
        out: Tensor = self.compaction(self.full(images))
        return out

    def grid(self, images: Tensor) -> Tensor:
        """Per-region features [n, 2C, h, w]: both halves scaled as in the full embedding, every value at its place.

        The activation of a literal Xception has no places in the image: its half is zero, the encoding alone explains.
        """
        rmp, act = self.halves(images)
        if self.xception.config.form == "literal":
            act = torch.zeros_like(act)
        scaled = [x / x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None] for x in (rmp, act)]
        return torch.cat(scaled, 1)
