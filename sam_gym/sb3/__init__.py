"""Stable-Baselines3 on top of the environments: VecEnv adapter, spatial policy, cloning. Needs the extra `sb3`."""

try:
    import sb3_contrib  # noqa: F401
except ImportError as error:
    raise ImportError("sam_gym.sb3 needs Stable-Baselines3: pip install 'sam_gym[sb3]'") from error

from sam_gym.sb3.choosing import ChoicePolicy
from sam_gym.sb3.cloning import Cloner, CloneSettings
from sam_gym.sb3.models import ALGORITHMS, ModelPrompter, load_model
from sam_gym.sb3.policy import BoxPolicy, LightPolicy, SketchPolicy, SpatialPolicy
from sam_gym.sb3.saved import SavedAgent, save_agent
from sam_gym.sb3.vec_env import SamVecEnv

__all__ = [
    "ALGORITHMS",
    "BoxPolicy",
    "ChoicePolicy",
    "CloneSettings",
    "Cloner",
    "LightPolicy",
    "ModelPrompter",
    "SamVecEnv",
    "SavedAgent",
    "SketchPolicy",
    "SpatialPolicy",
    "load_model",
    "save_agent",
]
