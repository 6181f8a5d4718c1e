"""From vectors to ranked tags. Pure numpy: it knows neither the model nor where the tags come from.

All vectors are float32; image and tag vectors have unit length, so that a dot product is their cosine.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float32]


def rank_tags(
    image: Vector, tags: Sequence[str], vectors: Matrix, logit_scale: float, limit: int
) -> list[tuple[str, float]]:
    """The `limit` likeliest tags with their confidences, best first; equal ones in the order of `tags`.

    The confidence is the softmax of `logit_scale * cosine` over all `tags`, whose vectors are the rows of `vectors`.
    """
    logits = logit_scale * (vectors @ image).astype(np.float64)
    odds = np.exp(logits - logits.max())
    confidences = odds / odds.sum()
    best = np.argsort(-confidences, kind="stable")[:limit]
    return [(tags[index], float(confidences[index])) for index in best]


def unit(vectors: Matrix) -> Matrix:
    """Each row at length 1."""
    lengths: Matrix = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / lengths).astype(np.float32, copy=False)


def means_of_groups(vectors: Matrix, sizes: Sequence[int]) -> Matrix:
    """One unit vector for each group of rows: the direction of their mean. `sizes` counts the rows of each group."""
    starts = np.cumsum([0, *sizes[:-1]])
    return unit(np.add.reduceat(vectors, starts, axis=0))
