"""The whole way from a grey slice to its vector: CE-Net encoder, Xception, lesion profile, compaction.

One module so that training, packs and the node compute the same thing. The halves (encoding and activation) are
L2-normalised before they are joined (else the one with the higher variance decides every distance); with the lesion
profile beside them each of the three parts has a third of the variance. Then PCA, then L2. It holds no files.

A network with ``flip_average`` looks at each slice and at its mirror image and takes the mean of the two, flipped back:
twice the work. Packs were made so until it was measured to bring nothing (docs/evaluation.md); they stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from dicomnode.models.networks.cenet import CENetConfig, CENetDecoder, CENetEncoder
from dicomnode.models.networks.lesion import BANDS, LESION_DIM, SIDES, lesion_code
from dicomnode.models.networks.xception import Xception, XceptionConfig
from dicomnode.models.tensors import standardise

LESION_CLASSES = 2  # of the CE-Net: lungs, infection


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
        return functional.normalize((full - self.mean) @ self.rows(full.device).T, dim=1)

    def rows(self, device: torch.device) -> Tensor:
        """The components as float32 [dim, full_dim] on a device, made once."""
        if self._rows is None or self._rows.device != device:
            self._rows = self.components.to(device, torch.float32) * self.scale[:, None]
        return self._rows

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


LESION_SHARE = 1 / 3  # of the variance: as much as each half


def averages_flips(architecture: Mapping[str, Any]) -> bool:
    """Whether a manifest's network takes the mean of a slice and its mirror image.

    Packs of before say nothing of it and do: that the word is absent keeps their identity.
    """
    return bool(architecture.get("flip_average", True))


class EmbeddingNet(nn.Module):
    """Encoder and Xception of a pack, with its compaction; with ``lesion`` also the CE-Net's decoder.

    Parameters
    ----------
    cenet, xception : architectures.
    side : int
        Side of the input in pixels; the grid is side / 32.
    dim : int
        Dimension of the vectors.
    lesion : bool
        Whether the lesion profile (``networks.lesion``) is a third part.
    flip_average : bool
        Whether the halves are the mean over the slice and its mirror image.

    Attributes
    ----------
    parts : name -> columns of the full embedding: "rmp", "activation" and, with ``lesion``, "lesion".
    """

    lesion_weight: Tensor

    def __init__(
        self,
        cenet: CENetConfig,
        xception: XceptionConfig,
        side: int,
        dim: int,
        lesion: bool = False,
        flip_average: bool = False,
    ) -> None:
        super().__init__()
        self._cenet = cenet
        self.flip_average = flip_average
        self.encoder = CENetEncoder(cenet)
        if xception.in_channels != self.encoder.out_channels:
            raise ValueError(
                f"the Xception takes {xception.in_channels} channels, the encoder gives {self.encoder.out_channels}"
            )
        if lesion and cenet.classes != LESION_CLASSES:
            raise ValueError(f"the lesion profile needs {LESION_CLASSES} classes, lungs and infection")
        self.xception = Xception(xception)
        self.side = side
        half = self.encoder.out_channels * (side // 32) ** 2
        self.parts = {"rmp": slice(0, half), "activation": slice(half, 2 * half)}
        self.full_dim = 2 * half
        self.decoder: CENetDecoder | None = None
        if lesion:
            self.decoder = CENetDecoder(cenet, self.encoder)
            self.parts["lesion"] = slice(2 * half, 2 * half + LESION_DIM)
            self.full_dim += LESION_DIM
            self.register_buffer("lesion_weight", torch.ones(()))
        self.compaction = Compaction(self.full_dim, dim)

    @property
    def architecture(self) -> dict[str, Any]:
        """Plain values for the manifest, a part of a pack's identity; ``of_architecture`` reads them.

        Where ``flip_average`` is so it is not written: see ``averages_flips``.
        """
        lesion = {} if self.decoder is None else {"lesion": {"bands": BANDS, "sides": SIDES}}
        flips = {} if self.flip_average else {"flip_average": False}
        return {"cenet": self._cenet.as_json(), "xception": self.xception.config.as_json(), **lesion, **flips}

    @classmethod
    def of_architecture(cls, architecture: Mapping[str, Any], side: int, dim: int) -> Self:
        """A network with random weights, as a manifest describes it.

        Raises
        ------
        KeyError, TypeError, ValueError
            The values describe none.
        """
        return cls(
            CENetConfig(**architecture["cenet"]),
            XceptionConfig(**architecture["xception"]),
            side,
            dim,
            lesion="lesion" in architecture,
            flip_average=averages_flips(architecture),
        )

    def halves(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [n, side, side] in 0..1 -> RMP encoding and Xception activation [n, C, h, w]."""
        return self._halves(self.encoder(self._looked_at(images)))

    def _looked_at(self, images: Tensor) -> Tensor:
        """[n, side, side] -> [n, 1, side, side]; with ``flip_average`` the n mirror images after them."""
        x = standardise(images[:, None])
        if self.flip_average:
            x = torch.cat([x, x.flip(3)])
        return x.contiguous(memory_format=torch.channels_last)

    def _halves(self, rmp: Tensor) -> tuple[Tensor, Tensor]:
        act = self.xception(rmp)
        if not self.flip_average:
            return rmp, act
        n = len(rmp) // 2
        return (rmp[:n] + rmp[n:].flip(3)) / 2, (act[:n] + act[n:].flip(3)) / 2

    def outlines(self, images: Tensor) -> Tensor:
        """float32 [n, side, side] in 0..1 -> logits of lungs and infection [n, 2, side, side].

        Raises
        ------
        ValueError
            The network has no decoder.
        """
        if self.decoder is None:
            raise ValueError("this network has no decoder")
        x = standardise(images[:, None]).contiguous(memory_format=torch.channels_last)
        return self.decoder.decode(*self.encoder.features(x))

    def full(self, images: Tensor) -> Tensor:
        """The full embedding [n, full_dim]: the halves flattened, each of length 1, and the weighted lesion profile."""
        n = len(images)
        a, b, c, rmp = self.encoder.features(self._looked_at(images))
        found = [functional.normalize(half.flatten(1), dim=1) for half in self._halves(rmp)]
        if self.decoder is not None:
            found.append(self.lesion_weight * lesion_code(self.decoder.decode(a[:n], b[:n], c[:n], rmp[:n])))
        return torch.cat(found, 1)

    @torch.no_grad()
    def fit(self, full: Tensor) -> float:
        """Fit weight and compaction to full embeddings [n, full_dim] of training images; the share of variance kept.

        Parameters
        ----------
        full : made with the weight that the network has now; scaled in place to the new one.

        Raises
        ------
        ValueError
            Fewer rows than dimensions.
        """
        if self.decoder is not None:
            at = self.parts["lesion"]
            spread = full.var(0, correction=0)
            lesion, others = spread[at].sum(), spread[: at.start].sum()
            factor = (others * LESION_SHARE / (1 - LESION_SHARE) / lesion.clamp(min=1e-12)).sqrt()
            if float(lesion) > 1e-12:  # else no lung was seen in any image: the part says nothing
                full[:, at] *= factor
                self.lesion_weight.mul_(factor)
        return self.compaction.fit(full)

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, side, side] in 0..1 -> unit vectors float32 [n, dim]."""
        out: Tensor = self.compaction(self.full(images))
        return out
