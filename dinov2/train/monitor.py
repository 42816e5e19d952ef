"""What a run shows of itself besides its losses: features of a fixed sample of its images, looked at now and then."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2.data.decode import DecodeError, decode_rgb
from dinov2.data.order import permute
from dinov2.data.sources import Source
from dinov2.data.view import center_crop, normalise
from dinov2.metrics import accuracy, effective_rank, knn_classify
from dinov2.params import InputError
from dinov2.search import top_k
from dinov2.train.objective import backbone_of

NUM_NEIGHBORS = 10
KNN_TEMPERATURE = 0.07


class Monitor:
    """A sample of images, fixed by the seed; every process holds all of it."""

    def __init__(self, source: Source, *, num_images: int, size_px: int, seed: int, device: torch.device) -> None:
        self.images, labels = _sample(source, num_images, size_px, seed)
        self.images = self.images.to(device)
        known = sorted({label for label in labels if label is not None})
        classes = {label: number for number, label in enumerate(known)}
        self.labelled = torch.tensor([i for i, label in enumerate(labels) if label is not None], dtype=torch.int64)
        self.labels = torch.tensor([classes[label] for label in labels if label is not None], dtype=torch.int64)
        self.num_classes = len(classes)

    @torch.no_grad()
    def values(self, network: nn.ModuleDict, temperature: float) -> dict[str, float]:
        """effective_rank of the sample's features; entropy of its image-level targets and prototypes in use; knn.

        `teacher_entropy` is the mean over images, in nats, of softmax(logits / temperature); `prototypes_used` is exp
        of the entropy of the mean of those. `knn` (only where two classes are known) classifies each labelled image by
        the sample's other labelled ones.
        """
        was_training = network.training
        network.eval()
        cls = torch.cat([backbone_of(network).features(part).cls for part in self.images.split(64)]).float()
        targets = torch.softmax(network["dino_head"](cls).float() / temperature, dim=1)
        network.train(was_training)
        if not targets.isfinite().all():
            return {}  # a run that goes wrong is told by its losses
        mean = targets.mean(dim=0)
        values = {
            "effective_rank": effective_rank(cls.cpu()),
            "teacher_entropy": float(-(targets * targets.clamp(min=1e-12).log()).sum(dim=1).mean()),
            "prototypes_used": float((-(mean * mean.clamp(min=1e-12).log()).sum()).exp()),
        }
        if self.num_classes > 1:
            values["knn"] = self._leave_one_out(cls[self.labelled.to(cls.device)].cpu())
        return values

    def _leave_one_out(self, features: Float[Tensor, "n d"]) -> float:
        unit = torch.nn.functional.normalize(features, dim=1)
        num = min(NUM_NEIGHBORS, len(unit) - 1)
        cosine, index = top_k(unit, unit, num + 1)
        own = index == torch.arange(len(unit))[:, None]
        own[~own.any(dim=1), -1] = True  # copies of the image came first: leave out the last instead
        cosine, index = cosine[~own].view(-1, num), index[~own].view(-1, num)
        scores = knn_classify(
            cosine, self.labels[index], num_neighbors=[num], num_classes=self.num_classes, temperature=KNN_TEMPERATURE
        )
        return accuracy(scores[num], self.labels, 1)


def _sample(
    source: Source, num_images: int, size_px: int, seed: int
) -> tuple[Float[Tensor, "n 3 s s"], list[str | None]]:
    images: list[np.ndarray | Tensor] = []
    labels: list[str | None] = []
    for place in range(len(source)):
        index = permute(place, len(source), seed)
        try:
            images.append(center_crop(decode_rgb(source.read(index)), size_px))
        except (DecodeError, OSError):
            continue  # the loader lists it when its turn comes
        labels.append(source.label(index))
        if len(images) == num_images:
            break
    if not images:
        raise InputError(f"none of the {len(source)} training images can be read; mend them")
    return normalise(torch.stack([torch.as_tensor(image) for image in images])), labels
