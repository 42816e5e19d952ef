"""How a network is trained: losses, optimiser, schedules, and their composition. Imports no torch."""

from math import sqrt
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dinov2.data.params import CropParams, MaskParams
from dinov2.models.params import HeadParams, ViTParams
from dinov2.params import Params

Weight = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=0)]


class LossParams(Params):
    """The objective: weights of its terms (one of weight 0 is not computed) and how targets are made."""

    dino_weight: Weight
    """Weight of the image-level terms, local and global (paper: 1)."""
    ibot_weight: Weight
    """Weight of the patch-level term (paper: 1). At 0 the student sees its global crops without masks."""
    koleo_weight: Weight
    """Weight of the spreading regulariser, summed over the two global crops (paper: 0.1)."""
    centering: Literal["sinkhorn", "softmax"]
    """Targets by Sinkhorn-Knopp (paper) or by a softmax with a moving centre (DINO)."""
    sinkhorn_iterations: Annotated[int, Field(gt=0)]
    """Iterations of Sinkhorn-Knopp (paper: 3)."""
    center_momentum: Annotated[float, Field(ge=0, lt=1)]
    """Momentum of the moving centre (0.9)."""
    student_temperature: Annotated[float, Field(gt=0)]
    """Temperature of the student's softmax (0.1)."""

    @model_validator(mode="after")
    def _check_weights(self) -> "LossParams":
        if self.dino_weight == self.ibot_weight == self.koleo_weight == 0:
            raise ValueError("dino_weight, ibot_weight and koleo_weight are all 0; raise one")
        return self


class OptimParams(Params):
    """AdamW with layer-wise learning rates."""

    base_lr: Annotated[float, Field(gt=0)]
    """Peak learning rate at a batch of 1024; it is scaled by sqrt(batch / 1024)."""
    beta1: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the mean of squared gradients."""
    layerwise_decay: Annotated[float, Field(gt=0, le=1)]
    """Learning-rate factor from a block to the one below it."""
    patch_embed_lr_multiplier: Annotated[float, Field(gt=0)]
    """Further learning-rate factor of the patch embedding."""
    clip_norm: Annotated[float, Field(gt=0)]
    """Largest gradient norm of the backbone and of each head, each clipped by itself."""


class ScheduleParams(Params):
    """What changes over the steps; cosines end at the last step."""

    warmup_steps: Steps
    """Steps in which the learning rate rises linearly from 0."""
    min_lr: Annotated[float, Field(ge=0)]
    """Learning rate at the end; it is not scaled with the batch."""
    weight_decay_start: Annotated[float, Field(ge=0)]
    """Weight decay at the start."""
    weight_decay_end: Annotated[float, Field(ge=0)]
    """Weight decay at the end."""
    momentum_start: Annotated[float, Field(ge=0, le=1)]
    """Momentum of the teacher (in distillation: of the student's average) at the start."""
    momentum_end: Annotated[float, Field(ge=0, le=1)]
    """The same at the end."""
    teacher_temperature_start: Annotated[float, Field(gt=0)]
    """Temperature of the teacher's targets at the start."""
    teacher_temperature_end: Annotated[float, Field(gt=0)]
    """The same after its warm-up."""
    teacher_temperature_warmup_steps: Steps
    """Steps in which the teacher's temperature changes linearly."""
    freeze_last_layer_steps: Steps
    """First steps, in which the prototypes stay as they are."""
    freeze_backbone_steps: Steps
    """First steps, in which the backbone stays as it is while fresh heads learn it; for runs with given weights."""


class EfficiencyParams(Params):
    """How a step is computed: what it costs, not what it means. Only precision changes more than the last digits."""

    precision: Literal["fp32", "bf16", "fp16"]
    """Arithmetic of the networks; master weights, targets and losses are always fp32. fp16 scales its gradients."""
    attention: Literal["sdpa", "xformers", "varlen"]
    """Attention kernel; all but sdpa need a GPU, xformers the gpu extra."""
    compile: bool
    """Whether blocks are compiled: faster on a GPU after minutes of compilation, no gain on a CPU."""
    recompute: Literal["none", "pointwise", "block"]
    """What the backward pass computes again to save memory: nothing, all but matrix products and attention, or all."""
    num_micro_batches: Annotated[int, Field(gt=0)]
    """Parts of a process's batch that pass the student one after the other; targets are of the whole batch."""
    shard_processes: Annotated[int, Field(gt=0)] | None
    """Processes that one copy of the weights is spread over (usually a node's); null: all of them."""


class WatchParams(Params):
    """Looks at the run itself, none of which changes it."""

    every_steps: Annotated[int, Field(gt=0)] | None
    """Steps between looks at the features of a fixed sample (rank, k-NN, entropy of the teacher); null: none."""
    images: Annotated[int, Field(gt=1)]
    """Images of that sample."""
    min_effective_rank: Annotated[float, Field(gt=0)] | None
    """Effective rank of the sample's features below which a collapse is warned of; null: never."""
    max_chance_steps: Annotated[int, Field(gt=0)] | None
    """Steps that the image-level loss may stay where guessing would put it before that is warned of; null: any."""
    max_skipped_in_a_row: Annotated[int, Field(gt=0)]
    """Steps in a row without finite losses and gradients that end the run."""
    max_dumps: Annotated[int, Field(ge=0)]
    """Steps that were not finite of which batch and weights are kept, to be replayed."""
    stall_s: Annotated[float, Field(gt=0)] | None
    """Seconds without a step after which the process tells where it hangs and ends; null: never."""


class RecipeParams(Params):
    """How networks are trained, whatever the networks."""

    seed: Annotated[int, Field(ge=0)]
    """Decides initial weights, order of samples, augmentation, masks, stochastic depth."""
    crops: CropParams
    masks: MaskParams
    loss: LossParams
    optim: OptimParams
    schedule: ScheduleParams
    batch_size: Annotated[int, Field(gt=0)]
    """Images of a step, over all processes."""
    group_size: Annotated[int, Field(gt=0)]
    """Images among which KoLeo's neighbours, masks and stochastic depth are drawn; divides each process's batch."""
    num_steps: Annotated[int, Field(gt=0)]
    """Steps of the run."""
    checkpoint_every_steps: Annotated[int, Field(gt=0)]
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, Field(gt=0)]
    """Newest checkpoints that stay on disk."""
    log_every_steps: Annotated[int, Field(gt=0)]
    """Steps between points of the curves."""
    efficiency: EfficiencyParams
    watch: WatchParams

    @model_validator(mode="after")
    def _check_groups(self) -> "RecipeParams":
        if self.batch_size % self.group_size:
            raise ValueError(f"group_size is {self.group_size}, which does not divide batch_size {self.batch_size}")
        if self.loss.koleo_weight > 0 and self.group_size == 1:
            raise ValueError("group_size is 1, so KoLeo has no neighbours; raise it or set koleo_weight to 0")
        num_parts = self.efficiency.num_micro_batches
        if self.batch_size % (self.group_size * num_parts):
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into {num_parts} num_micro_batches of whole groups of "
                f"{self.group_size} images"
            )
        return self

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up: base_lr * sqrt(batch_size / 1024)."""
        return self.optim.base_lr * sqrt(self.batch_size / 1024)


class InitialParams(Params):
    """Weights that a training starts from instead of fresh ones. The heads are fresh in any case."""

    path: Annotated[str, Field(min_length=1)]
    """Folder of one of our backbones, or file of released weights."""
    architecture: str | None
    """What a released file holds (vit_small, vit_large_reg4, ...); null: one of ours, which tells it itself."""


class TrainParams(RecipeParams):
    """A whole training run."""

    model: ViTParams
    dino_head: HeadParams
    """Head of the image-level loss."""
    ibot_head: HeadParams | None
    """Head of the patch-level loss; null: it shares dino_head."""
    init_from: InitialParams | None
    """The backbone to go on from, its positions resized to `model`'s; null: fresh weights."""


class Architecture(Params):
    """The networks of a training: all that their state dicts' names and shapes depend on."""

    model: ViTParams
    dino_head: HeadParams
    ibot_head: HeadParams | None
