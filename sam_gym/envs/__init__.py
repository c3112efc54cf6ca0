"""The environments."""

from sam_gym.envs.box_refine import SamBoxRefineEnv, SamBoxRefineVectorEnv
from sam_gym.envs.prompt import SamPromptEnv, SamPromptVectorEnv

__all__ = ["SamBoxRefineEnv", "SamBoxRefineVectorEnv", "SamPromptEnv", "SamPromptVectorEnv"]
