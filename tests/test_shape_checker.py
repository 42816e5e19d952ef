"""Shapes of the library's public functions are checked in tests."""

import pytest
import torch
from jaxtyping import TypeCheckError

from dinov2.search import top_k


def test_wrong_shape_is_refused_before_anything_is_computed():
    with pytest.raises(TypeCheckError):
        top_k(torch.zeros(3, 4), torch.zeros(5, 7), 1)
