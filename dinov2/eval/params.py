"""How backbones are judged: parameters of the k-NN, the linear probe, the baselines and the PCA picture. No torch."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from dinov2.params import Params


class KnnParams(Params):
    """Weighted k-NN on the class token (notes: temperature and votes as in the paper's section 7.1)."""

    num_neighbors: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]
    """Each is reported; one that is above the number of training images becomes that number."""
    reference: Annotated[int, Field(gt=0)]
    """The one of them that the tables, the interval and the gates take."""
    temperature: Annotated[float, Field(gt=0)]
    """A vote weighs softmax(cosine / temperature)."""

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        if self.reference not in self.num_neighbors:
            raise ValueError(f"reference {self.reference} is not among num_neighbors {self.num_neighbors}; add it")
        return self


class LinearParams(Params):
    """Linear classifiers on frozen features, trained together; the best one is chosen without the test images."""

    learning_rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    """Tried at a batch of 256; scaled by batch_size / 256."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Of SGD; no weight decay."""
    num_steps: Annotated[int, Field(gt=0)]
    """Steps of SGD; the learning rate goes to 0 by a cosine."""
    batch_size: Annotated[int, Field(gt=0)]
    """Images a step."""
    validation_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of each label's training images on which the classifier is chosen."""


class BaselineParams(Params):
    """Descriptors that learn nothing."""

    image_size_px: Annotated[int, Field(gt=0)]
    """Side of the centre crop that is described."""
    histogram_bins: Annotated[int, Field(gt=1)]
    """Bins a channel of the RGB histogram."""
    pixels_px: Annotated[int, Field(gt=0)]
    """Side of the image whose raw pixels are compared."""


class PcaParams(Params):
    """The picture of patch features (the paper's figure 1)."""

    num_images: Annotated[int, Field(gt=0)]
    """Evaluation images shown, spread over the labels."""
    scale: Annotated[int, Field(gt=0)]
    """Images are this many times the backbone's image size, for a finer grid of patches."""
    tile_px: Annotated[int, Field(gt=0)]
    """Side of an image in the picture."""
