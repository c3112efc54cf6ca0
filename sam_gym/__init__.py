"""sam_gym: Gymnasium environments in which a frozen Segment Anything Model is the world and prompts are the actions.

`import sam_gym` registers the environments and needs only numpy and gymnasium; torch is loaded when one is made.
"""

from sam_gym.registration import env_ids, register_envs
from sam_gym.version import __version__

__all__ = ["__version__", "env_ids", "register_envs"]

register_envs()
