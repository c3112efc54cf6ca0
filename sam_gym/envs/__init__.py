"""The environments."""

from sam_gym.envs.box_refine import SamBoxRefineEnv, SamBoxRefineVectorEnv
from sam_gym.envs.prompt import SamPromptEnv, SamPromptVectorEnv
from sam_gym.envs.proofread import SamProofreadEnv, SamProofreadVectorEnv
from sam_gym.envs.semantic import SamPromptSemanticEnv, SamPromptSemanticVectorEnv

__all__ = [
    "SamBoxRefineEnv",
    "SamBoxRefineVectorEnv",
    "SamPromptEnv",
    "SamPromptSemanticEnv",
    "SamPromptSemanticVectorEnv",
    "SamPromptVectorEnv",
    "SamProofreadEnv",
    "SamProofreadVectorEnv",
]
