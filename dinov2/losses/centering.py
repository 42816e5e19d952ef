"""How a teacher's logits become targets: Sinkhorn-Knopp (the paper) or a softmax with a moving centre (DINO).

Both give targets exp(logits / temperature - prototype - sample), with one number a prototype and one a sample, so that
targets cost no memory: the loss makes the ones it needs of these. Both run in fp32 and over the samples of all
processes, so that the targets do not depend on how a batch is spread.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from dinov2.distributed import all_reduce_sum, world_size
from dinov2.losses.prototypes import BlockLogits, Prototypes, block_width, compute_dtype


class Assignment(NamedTuple):
    """Soft assignment of samples to prototypes: targets of mass 1 a sample, without a gradient."""

    features: Float[Tensor, "*n d"]
    """What the teacher's head makes of the samples before the prototypes, of unit length."""
    prototypes: Prototypes
    temperature: float
    sample: Float[Tensor, "*n"]
    """What is taken from each sample's logits."""
    prototype: Float[Tensor, " k"]
    """What is taken from each prototype's logits."""

    def rows(self, shape: tuple[int, ...], start: int, stop: int) -> "Assignment":
        """Of samples `start` to `stop` of the last dimension when the samples are seen as `shape`."""
        features, sample = self.features.view(*shape, self.features.shape[-1]), self.sample.view(shape)
        return self._replace(features=features[..., start:stop, :], sample=sample[..., start:stop])

    def logits(self, *, width: int, dtype: torch.dtype, again: bool) -> BlockLogits:
        """The samples' logits / temperature, all in one dimension."""
        features = self.features.flatten(0, -2)
        return BlockLogits(
            features, self.prototypes, temperature=self.temperature, dtype=dtype, width=width, again=again
        )

    def targets(self) -> Float[Tensor, "*n k"]:
        """All targets at once, for tests and small sets."""
        width = len(self.prototype)
        logits = self.logits(width=width, dtype=torch.float32, again=False).block(0).view(*self.sample.shape, width)
        return (logits - self.prototype).sub_(self.sample.unsqueeze(-1)).exp_()


@torch.no_grad()
def sinkhorn_knopp(
    features: Float[Tensor, "n d"],
    prototypes: Prototypes,
    *,
    temperature: float,
    num_iterations: int,
    most_samples: int | None = None,
) -> Assignment:
    """exp(logits / temperature) made to have rows of mass 1 and columns of nearly equal mass.

    Each iteration divides every prototype by its mass over all processes, then every sample by its own mass
    (arXiv 2006.09882; paper section 4). Kept in the log domain, with each sum's greatest term taken out, so that no
    finite logits overflow or vanish. A process may hold no sample at all; processes whose numbers of samples differ
    give the same `most_samples`, since they meet once a block.
    """
    sample = features.new_zeros(len(features), dtype=torch.float32)
    prototype = sample.new_zeros(len(prototypes.directions))
    width = block_width(len(features) if most_samples is None else most_samples, features.device)
    start = Assignment(features, prototypes, temperature, sample, prototype)
    logits = start.logits(width=width, dtype=compute_dtype(features.device), again=True)
    for _ in range(num_iterations):
        prototype_parts, sample_parts = [], []
        for block in logits:
            part = _log_mass(block - sample[:, None])
            prototype_parts.append(part)
            sample_parts.append(torch.logsumexp(block - part, dim=1))
        prototype = torch.cat(prototype_parts)
        sample = torch.logsumexp(torch.stack(sample_parts), dim=0)
    return start._replace(sample=sample, prototype=prototype)


def _log_mass(logits: Float[Tensor, "n w"]) -> Float[Tensor, " w"]:
    """log of every column's mass, summed over the samples of all processes."""
    if world_size() == 1:
        return torch.logsumexp(logits, dim=0)
    mine = torch.logsumexp(logits, dim=0)  # -inf where this process has no sample
    greatest = mine.clone()
    dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    return all_reduce_sum((mine - greatest).exp_()).log_().add_(greatest)


@torch.no_grad()
def centered_softmax(
    features: Float[Tensor, "n d"], prototypes: Prototypes, center: Float[Tensor, "1 k"], *, temperature: float
) -> Assignment:
    """softmax((logits - center) / temperature)."""
    prototype = center[0].float() / temperature
    start = Assignment(
        features, prototypes, temperature, prototype.new_zeros(len(features)), prototype.new_zeros(len(prototype))
    )
    width = block_width(len(features), features.device)
    logits = start.logits(width=width, dtype=compute_dtype(features.device), again=False)
    parts = [
        torch.logsumexp(block - prototype[columns], dim=1)
        for block, columns in zip(logits, logits.columns, strict=True)
    ]
    return start._replace(sample=torch.logsumexp(torch.stack(parts), dim=0), prototype=prototype)


@torch.no_grad()
def update_center(
    center: Float[Tensor, "1 k"], features: Float[Tensor, "n d"], prototypes: Prototypes, *, momentum: float
) -> None:
    """Moves `center` in place towards the mean of the logits of all processes, after their targets were made.

    Every sample counts alike; the reference averages the processes' means, which differs if they mask unequally much.
    A mean that is not finite leaves the centre as it is, or it would never be finite again.
    """
    total = all_reduce_sum(features.float().sum(0, keepdim=True))
    count = all_reduce_sum(torch.full((1,), float(len(features)), device=features.device))
    directions = prototypes.directions.float()
    scale = prototypes.factors.float().T / directions.norm(dim=1)  # [1 k]
    mean = (total / count.clamp(min=1)) @ directions.T * scale
    moved = torch.lerp(mean, center, momentum)
    center.copy_(torch.where(mean.isfinite().all() & (count > 0), moved, center))
