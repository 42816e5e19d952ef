"""How much goes through the networks in one step: crops, tokens and masked patches, by arithmetic alone.

What a step costs (`flops.py`) and what it keeps (`memory.py`) are counted from this. Imports no torch.
"""

from typing import NamedTuple

from dinov2.models.params import ViTParams
from dinov2.train.params import RecipeParams


class Shape(NamedTuple):
    """Samples of equal length."""

    samples: int
    length: int
    """Tokens of each."""

    @property
    def tokens(self) -> int:
        """Tokens of all of them."""
        return self.samples * self.length


class Workload(NamedTuple):
    """One step's rows, of so many images."""

    images: int
    teacher: list[Shape]
    """Crops that the teacher sees: the global ones, or none if no loss asks it."""
    student: list[Shape]
    """Crops that the student sees: global, then local ones."""
    kept: list[Shape]
    """Those of them that each residual branch runs on (stochastic depth by subsets)."""
    masked_patches: int
    """Patches that the patch-level loss compares; an expectation, since masks are drawn."""
    teacher_cls: int
    """CLS tokens that meet the teacher's image-level head."""
    student_cls: int
    """CLS tokens that meet the student's image-level head."""
    spread_cls: int
    """Global crops' CLS tokens that KoLeo spreads."""

    @property
    def teacher_rows(self) -> int:
        """Tokens of the teacher that come out of its last block: all CLS and the masked patches."""
        return sum(shape.samples for shape in self.teacher) + self.masked_patches

    @property
    def student_rows(self) -> int:
        """The same of the student."""
        return sum(shape.samples for shape in self.student) + self.masked_patches


def workload(recipe: RecipeParams, model: ViTParams, num_images: int) -> Workload:
    """What `num_images` of a step (whole groups of `group_size`) put through student and teacher.

    Masks fill their aims but for 1 % (masking.py, 16 x 16 patches), so the mean of the aims is taken.
    """
    crops, loss, masks = recipe.crops, recipe.loss, recipe.masks
    num_groups = num_images // recipe.group_size
    global_crops = Shape(2 * num_images, model.num_tokens(crops.global_size_px, crops.global_size_px))
    local_crops = Shape(crops.num_local * num_images, model.num_tokens(crops.local_size_px, crops.local_size_px))
    with_local = crops.num_local > 0 and loss.dino_weight > 0
    student = [global_crops, local_crops] if with_local else [global_crops]
    patches = global_crops.length - 1 - model.num_registers
    masked = num_groups * int(2 * recipe.group_size * masks.probability) * patches
    return Workload(
        images=num_images,
        teacher=[global_crops] if loss.dino_weight > 0 or loss.ibot_weight > 0 else [],
        student=student,
        kept=[_kept(shape, num_groups, model.drop_path) for shape in student],
        masked_patches=round(masked * (masks.ratio_min + masks.ratio_max) / 2) if loss.ibot_weight > 0 else 0,
        teacher_cls=global_crops.samples if loss.dino_weight > 0 else 0,
        student_cls=sum(shape.samples for shape in student) if loss.dino_weight > 0 else 0,
        spread_cls=global_crops.samples if loss.koleo_weight > 0 else 0,
    )


def _kept(shape: Shape, num_groups: int, drop_path: float) -> Shape:
    """Of each group's crops of one size at least one, else the whole number below their share (layers.draw_subsets)."""
    if drop_path == 0:
        return shape
    return Shape(num_groups * max(int(shape.samples // num_groups * (1 - drop_path)), 1), shape.length)
