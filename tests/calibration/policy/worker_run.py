"""What ``torchrun`` starts in ``test_workers``: a short training, whose weights are written down.

Arguments: bundle, data, work folder, and the folder of the weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tests.calibration.policy.stand_ins import opened_training, small_options, weights_of

from fewstep.calibration.policy import workers


def main() -> None:
    """Train, and save the weights and the history of this process."""
    bundle, data, work, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    with workers.joined():
        options = small_options(bundle, data, rollouts=8, evaluation_images=6)
        with opened_training(options, work) as opened:
            history = opened.run().history
            torch.save(weights_of(opened), out / f"{workers.rank()}.pt")
            (out / f"{workers.rank()}.json").write_text(json.dumps(history))
            own = torch.arange(2.0) + 10 * workers.rank()
            assert workers.gathered(own).tolist() == [0, 1, 10, 11]


if __name__ == "__main__":
    main()
