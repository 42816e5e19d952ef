"""Short codes whose products tell near-copies from strangers: a random projection, in whole numbers.

The cosine of two rows after projection on e random orthonormal directions is scattered about theirs, by an amount that
depends on their cosine, d and e alone and not on the data (the Gram matrix of the heads of two orthonormal rows is
matrix-variate beta). So the score that a share of the pairs at a cosine reaches is known beforehand. Principal
components would not do: what makes two images near-copies is in all directions.

Codes are whole numbers in -127..127, so that their products are exact in bf16 and in float32 whatever the order of
additions: which pairs pass does not depend on device, precision, tiles or threads.
"""

import numpy as np
from jaxtyping import Float

SCALE = 127 / 5  # numbers of a random unit vector beyond five standard deviations are clipped
MAX_DIMS = 1024  # 127^2 times this is below 2^24, where float32 counts without gaps
NUM_DRAWS = 2**15


def random_frame(dims: int, num_directions: int, seed: int) -> Float[np.ndarray, "d e"]:
    """Orthonormal columns, uniformly distributed."""
    gaussian = np.random.Generator(np.random.PCG64(seed)).standard_normal((dims, num_directions))
    frame, triangle = np.linalg.qr(gaussian)
    return frame * np.sign(np.diag(triangle))


def encode(rows: Float[np.ndarray, "n d"], frame: Float[np.ndarray, "d e"]) -> Float[np.ndarray, "n e"]:
    """Codes as float32; zeros of a row of zeros. In float64, so that no blocking of the product shows."""
    codes = np.empty((len(rows), frame.shape[1]), np.float32)
    for start in range(0, len(rows), 4096):
        projected = rows[start : start + 4096].astype(np.float64) @ frame
        lengths = np.linalg.norm(projected, axis=1, keepdims=True)
        projected *= SCALE * np.sqrt(frame.shape[1]) / np.where(lengths > 0, lengths, 1)
        codes[start : start + 4096] = np.clip(np.rint(projected), -127, 127)
    return codes


def score_for(min_cosine: float, dims: int, num_directions: int, miss: float) -> float:
    """The score that all but a share `miss` of the pairs at `min_cosine` reach; more of those above it.

    0 where there is none above 0. It lies half-way between two bf16 numbers, the upper one even: comparing products
    with it in float32 and comparing them after their rounding to bf16 is then the same.
    """
    reached = np.quantile(_projected_cosines(min_cosine, dims, num_directions), miss)
    score = np.float32(reached * SCALE**2 * num_directions)
    if score <= 1:
        return 0.0
    upper = (score.view(np.uint32) >> np.uint32(17)) << np.uint32(17)
    return float((upper - np.uint32(0x8000)).view(np.float32))


def _projected_cosines(cosine: float, dims: int, num_directions: int) -> Float[np.ndarray, " draws"]:
    """Draws of the cosine of two rows after projection, given theirs before it."""
    rng = np.random.Generator(np.random.PCG64(0))
    head, tail = _wishart(num_directions, rng), _wishart(dims - num_directions, rng)
    triangle = np.linalg.cholesky(head + tail)
    half = np.linalg.solve(triangle, head)
    gram = np.linalg.solve(triangle, half.transpose(0, 2, 1))  # of the heads of two orthonormal rows
    one = np.array([1.0, 0.0])
    other = np.array([cosine, np.sqrt(1 - cosine**2)])
    lengths = np.sqrt((one @ gram @ one) * (other @ gram @ other))
    return (other @ gram @ one) / lengths


def _wishart(freedom: int, rng: np.random.Generator) -> Float[np.ndarray, "draws 2 2"]:
    """Gram matrices of two Gaussian rows of `freedom` numbers, by Bartlett's decomposition."""
    factor = np.zeros((NUM_DRAWS, 2, 2))
    if freedom > 0:
        factor[:, 0, 0] = np.sqrt(rng.chisquare(freedom, NUM_DRAWS))
        factor[:, 1, 0] = rng.standard_normal(NUM_DRAWS)
        factor[:, 1, 1] = np.sqrt(rng.chisquare(freedom - 1, NUM_DRAWS)) if freedom > 1 else 0
    return factor @ factor.transpose(0, 2, 1)
