"""How a teacher's logits become targets: Sinkhorn-Knopp (the paper) or a softmax with a moving centre (DINO).

Both run in fp32 and over the samples of all processes, so that the targets do not depend on how a batch is spread.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from dinov2.distributed import all_reduce_sum, world_size


@torch.no_grad()
def sinkhorn_knopp(logits: Float[Tensor, "n k"], *, temperature: float, num_iterations: int) -> Float[Tensor, "n k"]:
    """Targets: exp(logits / temperature) made to have rows of mass 1 and columns of nearly equal mass.

    Each iteration divides every prototype by its mass over all processes, then every sample by its own mass
    (arXiv 2006.09882; paper section 4). Kept in the log domain, with each sum's greatest term taken out, so that no
    finite logits overflow or vanish. A process may hold no sample at all.
    """
    log_q = logits.float() / temperature
    sample = torch.zeros_like(log_q[:, :1])
    prototype = sample.new_zeros(())
    for _ in range(num_iterations):
        prototype = _log_mass_of_prototypes(log_q - sample)
        sample = torch.logsumexp(log_q - prototype, dim=1, keepdim=True)
    return (log_q - prototype - sample).exp_()


def _log_mass_of_prototypes(log_q: Float[Tensor, "n k"]) -> Float[Tensor, "1 k"]:
    """log of every prototype's mass, summed over the samples of all processes."""
    greatest = log_q.amax(0) if len(log_q) else log_q.new_full(log_q.shape[1:], -torch.inf)
    if world_size() > 1:
        dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    mass = all_reduce_sum((log_q - greatest).exp_().sum(0))
    return (mass.log_() + greatest).unsqueeze(0)


@torch.no_grad()
def centered_softmax(
    logits: Float[Tensor, "n k"], center: Float[Tensor, "1 k"], *, temperature: float
) -> Float[Tensor, "n k"]:
    """Targets softmax((logits - center) / temperature), fp32."""
    return torch.softmax((logits.float() - center) / temperature, dim=-1)


@torch.no_grad()
def update_center(center: Float[Tensor, "1 k"], logits: Float[Tensor, "n k"], *, momentum: float) -> None:
    """Moves `center` in place towards the mean of the logits of all processes, after their targets were made.

    Every sample counts alike; the reference averages the processes' means, which differs if they mask unequally much.
    """
    total = all_reduce_sum(logits.float().sum(0, keepdim=True))
    count = all_reduce_sum(torch.full((1,), float(len(logits)), device=logits.device))
    center.mul_(momentum).add_(total / count.clamp(min=1), alpha=1 - momentum)
