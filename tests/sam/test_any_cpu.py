"""What is promised to the bit holds on any CPU: child processes stand for machines that add in another order.

`MKL_CBWR` and `ATEN_CPU_CAPABILITY` are read when torch is loaded, so each machine is a process of its own. Machines
are not compared with each other: nothing is promised between them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

MACHINES = {
    "as it is": {},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE"},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}

# Company, threads and padding; then N singles and a vector environment, a copy, and a cached embedding.
PROMISES = """
import pickle
import gymnasium, numpy as np, torch
import sam_gym
from sam_gym.sam import PromptBatch, SamBackend

torch.set_num_threads(THREADS)
backend, rng = SamBackend("tiny_random", "cpu"), np.random.default_rng(0)
image = rng.integers(0, 256, (60, 50, 3)).astype(np.uint8)
embedding, again = backend.encode([image, image])
assert embedding.features.equal(again.features)
for clicks in (0, 1, 5):
    for mask in (None, torch.randn(backend.mask_size)):
        points = rng.uniform(0, 50, (clicks, 2))
        row = dict(points=points, labels=rng.integers(0, 2, clicks), boxes=(3, 4, 40, 45), mask_logits=mask)
        other = dict(points=rng.uniform(0, 50, (8, 2)), labels=np.ones(8, int), boxes=None, mask_logits=None)
        batch = lambda rows: PromptBatch.from_lists(**{name: [one[name] for one in rows] for name in row})
        alone = backend.decode([embedding], batch([row]))
        company = backend.decode([embedding] * 3, batch([other, row, other]))
        torch.set_num_threads(3 - THREADS)
        threads = backend.decode([embedding], batch([row]))
        torch.set_num_threads(THREADS)
        for found in (company.logits[1:2], threads.logits):
            assert alone.logits.equal(found), (clicks, mask is not None)

kwargs = {"checkpoint": "tiny_random", "device": "cpu", "split": "val"}
make = lambda: gymnasium.make("SamPrompt-Synthetic-v0", **kwargs)
singles = [make() for _ in range(3)]
vector = gymnasium.make_vec("SamPrompt-Synthetic-v0", num_envs=3, **kwargs)
seen = vector.reset(seed=5)[0]
each = [env.reset(seed=5 + i)[0] for i, env in enumerate(singles)]
copy = pickle.loads(pickle.dumps(singles[0]))
for actions in ([136, 400, 20], [100, 60, 300], [290, 137, 120]):
    for i in range(3):
        assert all((seen[name][i] == each[i][name]).all() for name in seen), i
    seen, rewards, *_ = vector.step(np.array(actions))
    steps = [env.step(action) for env, action in zip(singles, actions)]
    other = copy.step(actions[0])
    assert other[1] == steps[0][1] and all((other[0][name] == steps[0][0][name]).all() for name in seen)
    each = [step[0] for step in steps]
    assert rewards.tolist() == [step[1] for step in steps]
print("kept")
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("machine", MACHINES)
def test_promises_are_kept(child: Callable[..., str], machine: str, threads: int) -> None:
    assert child(PROMISES.replace("THREADS", str(threads)), **MACHINES[machine]) == "kept\n"
