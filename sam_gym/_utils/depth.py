"""How deep pixels lie in a mask. Pure NumPy and SciPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def depth_in(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance in px of each pixel's centre to the outline of a mask (H, W): positive inside, negative outside.

    Example:
        >>> import numpy as np
        >>> depth_in(np.array([[0, 1, 1, 1, 0]], bool))
        array([[-0.5,  0.5,  1.5,  0.5, -0.5]])
    """
    if mask.all() or not mask.any():
        return np.full(mask.shape, np.inf if mask.all() else -np.inf)
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return inside - outside + np.where(mask, -0.5, 0.5)
