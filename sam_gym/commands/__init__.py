"""The commands of `sam-gym`, a module each: arguments and messages. `sam_gym.cli` puts them together."""
