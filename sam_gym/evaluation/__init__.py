"""How good a prompter is: episodes that are the same for all, records of what it did, tables. Hands names on."""

from sam_gym.evaluation.records import EpisodeCase, Record
from sam_gym.evaluation.run import (
    EPISODE_LIST_VERSION,
    encode_images,
    episode_list,
    episode_list_hash,
    evaluate,
    evaluate_entries,
    evaluate_stored,
    evaluation_provenance,
    identity_of,
    is_current,
    kept,
    make_evaluation_env,
    record_file,
    select_cases,
)

__all__ = [
    "EPISODE_LIST_VERSION",
    "EpisodeCase",
    "Record",
    "encode_images",
    "episode_list",
    "episode_list_hash",
    "evaluate",
    "evaluate_entries",
    "evaluate_stored",
    "evaluation_provenance",
    "identity_of",
    "is_current",
    "kept",
    "make_evaluation_env",
    "record_file",
    "select_cases",
]
