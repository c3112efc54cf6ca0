"""Evaluate a saved agent beside the baselines: the same table, pictures and record as after training.

python agents/evaluate.py runs/NAME/model.zip
python agents/evaluate.py runs/NAME/model.zip --split val --objects 50
"""

from __future__ import annotations

import os
import sys

import tyro

# Before torch is loaded, see train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from sam_gym.training.evaluating import EvaluationArguments, evaluate_model


def main() -> None:
    """Parse the arguments, evaluate, report."""
    try:
        evaluate_model(tyro.cli(EvaluationArguments, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; run the same command again to go on with the entries that are missing")


if __name__ == "__main__":
    main()
