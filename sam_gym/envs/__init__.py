"""The environments."""

from sam_gym.envs.box_refine import SamBoxRefineEnv, SamBoxRefineVectorEnv
from sam_gym.envs.denoise import DenoiseEnv, DenoiseVectorEnv
from sam_gym.envs.prefer import SamPreferEnv, SamPreferVectorEnv
from sam_gym.envs.prompt import SamPromptEnv, SamPromptVectorEnv
from sam_gym.envs.proofread import SamProofreadEnv, SamProofreadVectorEnv
from sam_gym.envs.report import SamReportEnv, SamReportVectorEnv
from sam_gym.envs.semantic import SamPromptSemanticEnv, SamPromptSemanticVectorEnv

__all__ = [
    "DenoiseEnv",
    "DenoiseVectorEnv",
    "SamBoxRefineEnv",
    "SamBoxRefineVectorEnv",
    "SamPreferEnv",
    "SamPreferVectorEnv",
    "SamPromptEnv",
    "SamPromptSemanticEnv",
    "SamPromptSemanticVectorEnv",
    "SamPromptVectorEnv",
    "SamProofreadEnv",
    "SamProofreadVectorEnv",
    "SamReportEnv",
    "SamReportVectorEnv",
]
