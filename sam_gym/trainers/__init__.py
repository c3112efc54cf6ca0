"""Trainers other than Stable-Baselines3, around its policies here: Ray RLlib (`rllib`) and TorchRL (`torchrl`).

Nothing is imported here: each file needs an extra of its own.
"""
