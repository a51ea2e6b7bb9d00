"""How far a structure is from the training data of a model.

Last-layer descriptors of the training atoms are described, for each element, by their mean and covariance.
The Mahalanobis distance of another atom's descriptors says how unusual its environment is to the network.
Distances in the latent space of a network as a measure of its uncertainty: J. P. Janet, C. Duan, T. Yang,
A. Nandy, H. J. Kulik, Chem. Sci. 10, 7913 (2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

LIMIT_QUANTILE = 0.99
"""A distance of 1 is exceeded by this rest of the atoms that the limit is taken from."""
UNUSUAL = 2.0
"""Farther atoms are worth a warning: at most one of a thousand unseen structures of the training ensemble has one."""
FOREIGN = 3.0
"""Farther atoms may be refused: the rare events of a long simulation like the training data stay below."""
RIDGE = 1e-5
"""Smallest variance of a direction, in units of the mean variance: well above the rounding of float32."""
MIN_HELD_OUT = 20
"""With fewer held-out atoms of an element the limit is taken from its training atoms too."""


@dataclass(frozen=True)
class TrainingDomain:
    """Where a model was trained, in the space of its descriptors.

    Attributes:
        elements: atomic numbers of the training atoms, ascending.
        mean: mean descriptors of each element, float32.
        whitening: maps deviations from the mean to vectors whose length is the distance, float32.

    Raises:
        ValueError: for tensors that do not fit together, naming the one that is wrong.
    """

    elements: Int[Tensor, " elements"]
    mean: Float[Tensor, "elements channels"]
    whitening: Float[Tensor, "elements channels channels"]

    def __post_init__(self) -> None:
        if self.elements.dtype != torch.int64 or self.elements.ndim != 1 or len(self.elements) == 0:
            raise ValueError(f"`elements` must be a list of atomic numbers, got {_kind(self.elements)}")
        channels = self.mean.shape[-1] if self.mean.ndim else 0
        shapes = {"mean": (len(self.elements), channels), "whitening": (len(self.elements), channels, channels)}
        for name, shape in shapes.items():
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != torch.float32 or tensor.shape != shape or channels == 0:
                raise ValueError(f"`{name}` must be float32 of shape {shape}, got {_kind(tensor)}")
        # On a device the numbers come from the host, where they were looked at.
        if self.elements.device.type == "cpu":
            self._check_numbers()

    def _check_numbers(self) -> None:
        elements = self.elements.tolist()
        if elements != sorted(set(elements)) or not 1 <= elements[0] <= elements[-1] <= 118:
            raise ValueError(f"`elements` must be ascending atomic numbers, got {elements}")
        for name, tensor in (("mean", self.mean), ("whitening", self.whitening)):
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"`{name}` holds numbers that are not finite")

    @property
    def channels(self) -> int:
        """Number of descriptors of an atom."""
        return int(self.mean.shape[1])

    def to(self, device: torch.device | str) -> TrainingDomain:
        """The same domain on another device."""
        return TrainingDomain(self.elements.to(device), self.mean.to(device), self.whitening.to(device))

    def distance(
        self, descriptors: Float[Tensor, "atoms channels"], numbers: Int[Tensor, " atoms"]
    ) -> Float[Tensor, " atoms"]:
        """Mahalanobis distance of each atom in units of the limit of its element, float64.

        About one unseen atom of the training ensemble in a hundred has more than 1. Atoms of elements
        without training atoms are infinitely far away. Not differentiable.
        """
        distance = descriptors.new_full((len(numbers),), torch.inf, dtype=torch.float64)
        with torch.no_grad():
            for row, element in enumerate(self.elements):
                atoms = (numbers == element).nonzero()[:, 0]
                deviation = descriptors[atoms].to(torch.float64) - self.mean[row]
                lengths = torch.linalg.vector_norm(deviation @ self.whitening[row].to(torch.float64), dim=1)
                distance = distance.index_copy(0, atoms, lengths)
        return distance

    @staticmethod
    def fit(
        descriptors: Float[Tensor, "atoms channels"],
        numbers: Int[Tensor, " atoms"],
        *,
        held_out: Float[Tensor, "others channels"],
        held_out_numbers: Int[Tensor, " others"],
    ) -> TrainingDomain:
        """Describe training atoms; the limit of each element is a quantile of its held-out atoms.

        Fewer atoms than channels are enough: each covariance is shrunk towards the mean covariance of all
        elements with the weight of one atom. Held-out atoms of an element without training atoms are ignored.

        Raises:
            ValueError: without training atoms.
        """
        if len(numbers) == 0:
            raise ValueError("there are no atoms to describe: give training structures")
        elements = numbers.unique()
        groups = [descriptors[numbers == z].to(torch.float64) for z in elements]
        means = torch.stack([x.mean(0) for x in groups])
        scatters = [(x - mean).T @ (x - mean) for x, mean in zip(groups, means, strict=True)]
        pooled = _regular(torch.stack(scatters).sum(0) / len(numbers))
        whitenings = []
        for z, x, mean, scatter in zip(elements, groups, means, scatters, strict=True):
            covariance = _regular((scatter + pooled) / (len(x) + 1))
            whitening = torch.linalg.cholesky(torch.linalg.inv(covariance))
            judged = held_out[held_out_numbers == z].to(torch.float64)
            judged = judged if len(judged) >= MIN_HELD_OUT else torch.cat([x, judged])
            lengths = torch.linalg.vector_norm((judged - mean) @ whitening, dim=1)
            # Less than one standard deviation in every direction is never unusual.
            limit = lengths.quantile(LIMIT_QUANTILE).clamp(min=x.shape[1] ** 0.5)
            whitenings.append(whitening / limit)
        return TrainingDomain(elements, means.to(torch.float32), torch.stack(whitenings).to(torch.float32))


def _regular(covariance: Float[Tensor, "channels channels"]) -> Float[Tensor, "channels channels"]:
    """With a smallest variance, so that it can be inverted; one without any variance becomes the unit matrix."""
    scale = covariance.diagonal().mean()
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return covariance + RIDGE * scale * eye if float(scale) > 0.0 else eye


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
