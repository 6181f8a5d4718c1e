"""What a vector must be before a store or a search takes it. Pure."""

import math
from collections.abc import Sequence

from visionstack.errors import InvalidRequest
from visionstack.schemas import Distance

# The engines compute in 32-bit floats, where the square of a longer vector has no place.
MAX_LENGTH = 1e18


def prepared(vector: Sequence[float], distance: Distance, *, field: str = "vector") -> list[float]:
    """The vector as the store keeps it: of unit length under cosine. Raises `InvalidRequest`.

    Normalised here in 64 bits, because the engine's 32 bits make zero of a very long vector and leave a very short one.
    """
    if not all(map(math.isfinite, vector)):
        raise InvalidRequest.for_field(field, "holds a number that is not finite")
    largest = max(map(abs, vector))
    if distance != "cosine":
        if largest > MAX_LENGTH or math.hypot(*vector) > MAX_LENGTH:
            raise InvalidRequest.for_field(field, f"is longer than {MAX_LENGTH:g}")
        return list(vector)
    if largest == 0:
        raise InvalidRequest.for_field(field, "is zero, which has no direction; cosine distance needs one")
    # scaled first, so that neither the squares nor their sum leave the range of a float
    scaled = [number / largest for number in vector]
    length = math.hypot(*scaled)
    return [number / length for number in scaled]
