"""The tokens that a step decides, of positions in a known order.

    given[b, n] = −1            where first[b] ≤ ranks[b, n] < last[b]
                  tokens[b, n]  elsewhere

Shapes: tokens, ranks and given ``[B, N]`` int32, first and last ``[B]`` int32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


def choose_tokens(tokens: Ids, ranks: Ids, first: Ids, last: Ids, given: Ids) -> None:
    """Write which tokens stay, for ``sample_top_k_top_p``.

    Memory is all that this takes, so that there is nothing to compile.

    Args:
        tokens: ids ``[B, N]``.
        ranks: ``[B, N]``, the order in which positions are decided; −1 for those that never are.
        first: ``[B]``, positions decided before the step.
        last: ``[B]``, positions decided after it.
        given: out, ids ``[B, N]``; −1 where the step decides.
    """
    chosen = (first[:, None] <= ranks) & (ranks < last[:, None])
    given[:] = np.where(chosen, np.int32(-1), tokens)
