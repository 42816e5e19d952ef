"""Cross-entropy of a student's logits with a teacher's assignment, made of blocks of prototypes.

Of a sample, -sum_k target_k log softmax(logits / temperature)_k = mass * logsumexp - sum_k target_k logit_k. One pass
over the blocks gives the logsumexp; a second one makes each block's targets and logits once more, and from them the
loss and its whole gradient, which so is finished in the forward pass: no matrix of samples x prototypes outlives a
block.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinov2.losses.centering import Assignment
from dinov2.losses.prototypes import BlockLogits, Prototypes, block_width, compute_dtype, rough_product


class Student(NamedTuple):
    """The side that learns."""

    features: Float[Tensor, "s n d"]
    """Of unit length; s views of n samples."""
    prototypes: Prototypes
    temperature: float


def cross_entropy(
    targets: Assignment, student: Student, pairs: Float[Tensor, "s g"], weights: Float[Tensor, " n"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " s"]]:
    """Sum over all views and samples of weights_n * cross-entropy; and that sum by view, without a gradient.

    `targets` are of g views of the same n samples (features [g n d]). pairs[s, g] is how often view g's targets are
    asked of the student's view s. fp32, whatever autocast says; no sample gives 0.
    """
    dtype = compute_dtype(student.features.device)
    with torch.autocast(student.features.device.type, enabled=False):
        directions, factors = student.prototypes
        return _CrossEntropy.apply(  # pyright: ignore[reportReturnType]  # untyped in torch
            student.features.float(), directions.float(), factors.float(), student.temperature, targets, pairs,
            weights.float(), dtype,
        )  # fmt: skip


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any,
        features: Tensor,
        directions: Tensor,
        factors: Tensor,
        temperature: float,
        targets: Assignment,
        pairs: Tensor,
        weights: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        num_views, num_samples, _ = features.shape
        y = features.flatten(0, 1)
        width = block_width(max(len(y), targets.sample.numel()), y.device)
        logits = BlockLogits(
            y, Prototypes(directions, factors), temperature=temperature, dtype=dtype, width=width, again=True
        )
        log_sum = _log_sum(logits)  # [s*n 1]
        mass = pairs.sum(1).repeat_interleave(num_samples)[:, None]  # an assignment's rows have mass 1
        weight = weights.repeat(num_views)[:, None]
        gradient = _Gradient(y, weight, logits, factors, dtype) if any(ctx.needs_input_grad[:3]) else None
        dot = torch.zeros_like(log_sum)
        asked = targets.logits(width=width, dtype=dtype, again=False)
        for number, columns in enumerate(logits.columns):
            block = logits.block(number)
            target = _asked(asked.block(number), targets, columns, pairs)  # [s*n w]
            dot += (target * block).sum(1, keepdim=True)
            if gradient is not None:
                predicted = (block - log_sum).exp_()
                gradient.add(columns, (predicted if pairs.numel() == 1 else predicted.mul_(mass)).sub_(target))
        losses = ((mass * log_sum - dot) * weight).view(num_views, num_samples).sum(1)
        if gradient is not None:
            ctx.gradient = (gradient.of_features().view_as(features), gradient.directions, gradient.factors)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # of a decorator without types
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, ()  # handed out once, without a copy
        assert gradient, "the gradient of a cross-entropy can be taken once"
        return *(part.mul_(upstream[0]) for part in gradient), None, None, None, None, None


def _log_sum(logits: BlockLogits) -> Float[Tensor, "n 1"]:
    return torch.logsumexp(torch.stack([torch.logsumexp(block, dim=1) for block in logits]), dim=0)[:, None]


def _asked(logits: Tensor, targets: Assignment, columns: slice, pairs: Tensor) -> Float[Tensor, "rows w"]:
    """One block of the targets, added up for each of the student's views."""
    target = (logits - targets.prototype[columns]).sub_(targets.sample.flatten()[:, None]).exp_()
    if pairs.numel() == 1:
        return target
    num_views = pairs.shape[1]
    return torch.tensordot(pairs, target.unflatten(0, (num_views, len(target) // num_views)), dims=1).flatten(0, 1)


class _Gradient:
    """The gradient with respect to a student's features and prototypes, added up block by block."""

    def __init__(self, y: Tensor, weight: Tensor, logits: BlockLogits, factors: Tensor, dtype: torch.dtype) -> None:
        """Of samples `y` [n d], each with its weight [n 1], whose logits / temperature are `logits`."""
        self.weight, self.dtype = weight, dtype
        self.weighted = y * weight
        self.v, self.scale = logits.directions, logits.scale  # logit = scale * y @ v
        self.of_factor = self.scale / factors[:, 0]
        self.inverse_square = 1 / self.v.square().sum(1)
        self.features = torch.zeros_like(y)
        self.directions = torch.empty_like(self.v)
        self.factors = torch.empty_like(factors)

    def add(self, columns: slice, of_logits: Float[Tensor, "n w"]) -> None:
        """Add one block, given the gradient of the unweighted loss with respect to its logits."""
        if self.dtype != torch.float32:
            of_logits = of_logits.to(self.dtype)
        v, scale = self.v[columns], self.scale[columns, None]
        sums = rough_product(of_logits.T, self.weighted, self.dtype)  # [w d]
        along = (sums * v).sum(1)
        self.factors[columns, 0] = along * self.of_factor[columns]
        turn = (along * self.inverse_square[columns])[:, None] * v  # length does not matter: nothing along v itself
        torch.mul(sums.sub_(turn), scale, out=self.directions[columns])
        self.features += rough_product(of_logits, v * scale, self.dtype)

    def of_features(self) -> Float[Tensor, "n d"]:
        """What came together."""
        return self.features.mul_(self.weight)
