"""The environments."""

from sam_gym.envs.prompt import SamPromptEnv, SamPromptVectorEnv

__all__ = ["SamPromptEnv", "SamPromptVectorEnv"]
