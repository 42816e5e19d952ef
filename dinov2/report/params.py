"""What the report shows: parameters of the page. Imports no torch."""

from typing import Annotated

from pydantic import Field

from dinov2.params import Params


class ReportParams(Params):
    """What the page shows and how much of it."""

    title: Annotated[str, Field(min_length=1)]
    """Heading of the page."""
    models: Annotated[list[str], Field(min_length=1)]
    """Evaluated networks in the order of the table, as evaluate's matrix calls them."""
    teacher: str
    """The one that the students were distilled from; their gap is to it."""
    curves: list[str]
    """Columns of curves.csv that are drawn, a panel each, where a run has them."""
    num_removed_shown: Annotated[int, Field(ge=0)]
    """Removed images shown for each reason."""
    num_seeds_shown: Annotated[int, Field(ge=0)]
    """Seed images shown with what they retrieved."""
    num_retrieved_shown: Annotated[int, Field(gt=0)]
    """Retrieved images shown beside each of them."""
    thumbnail_px: Annotated[int, Field(gt=0)]
    """Longer side of a shown image."""
    num_resamples: Annotated[int, Field(gt=0)]
    """Resamples of the test images for the 95 % interval of a difference."""
    seed: Annotated[int, Field(ge=0)]
    """Of that resampling."""
    mlflow_url: str
    """Address of the experiment's runs in MLflow's pages, to link to; empty for none."""
    prefect_url: str
    """Address of the runs in Prefect's pages, to link to; empty for none."""
