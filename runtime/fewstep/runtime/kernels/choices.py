"""What kernels do in one way or another: an argument is the index of its name here.

Apart from the kernels, so that whoever names one needs nothing that compiles them.
"""

from __future__ import annotations

CONFIDENCES = ("log-probability", "tempered-log-probability", "logit")
"""``sample_tokens``: what a confidence is of the sampled token, before the noise."""

AT_LEAST_ONE = ("no", "last-kept", "last-decided")
"""``remask``: whether every step decides a token at least; and if so, what becomes of the only one
that is masked: it is kept for the last step, or decided."""

TIES = ("decided", "masked")
"""``remask``: what becomes of positions that are as confident as the last one that is masked."""
