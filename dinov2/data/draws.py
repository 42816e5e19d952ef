"""Random numbers that depend only on what they are for: (seed, step, position), never on who asks or in what order.

Philox is a counter: every (purpose, seed, step, position) has its own stretch of one fixed stream, reached at once.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

PURPOSES = {"augment": 1, "drop_path": 2, "students": 3}
Purpose = Literal["augment", "drop_path", "students"]


def uniforms(purpose: Purpose, seed: int, step: int, position: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) of one step and one position in the global batch (a sample or a group)."""
    key = np.array([seed, PURPOSES[purpose]], dtype=np.uint64)
    counter = np.array([0, 0, position, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(count)


def integer_seed(purpose: Purpose, seed: int, step: int, position: int) -> int:
    """A 63-bit seed for another generator, e.g. torch's."""
    return int(uniforms(purpose, seed, step, position, 1)[0] * 2**53) << 10
