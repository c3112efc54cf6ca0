"""What the tests of checkpoints share."""

import pytest
import torch


@pytest.fixture
def same_weights():
    """Whether two models have the same tensors under the same names."""

    def compare(first, second):
        first, second = first.state_dict(), second.state_dict()
        return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

    return compare
