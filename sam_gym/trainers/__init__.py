"""Trainers other than Stable-Baselines3, around the policies of `sam_gym.sb3`: Ray RLlib (`rllib`), TorchRL (`torchrl`).

Nothing is imported here: each file needs an extra of its own.
"""
