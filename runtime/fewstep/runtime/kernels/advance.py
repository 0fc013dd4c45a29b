"""To the next step of a diffusion: the counter goes up by one, and the timestep is what it says.

Shapes: timesteps ``[S]``, counter ``[1]``, timestep ``[1]``, all int32. Behind the last of the
timesteps that one stays: nothing reads it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel


@kernel
def advance(
    timesteps: npt.NDArray[np.int32],
    counter: npt.NDArray[np.int32],
    timestep: npt.NDArray[np.int32],
) -> None:
    """Go on to the next step.

    Args:
        timesteps: of all diffusions, ``[S]``.
        counter: in and out, ``[1]``.
        timestep: out, ``[1]``.
    """
    counter[0] += 1
    timestep[0] = timesteps[min(counter[0], len(timesteps) - 1)]
