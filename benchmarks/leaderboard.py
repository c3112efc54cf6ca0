"""`sam-gym leaderboard` on the board of this folder, from wherever it is called.

python benchmarks/leaderboard.py run                                         everything; what is stored stays
python benchmarks/leaderboard.py run --env SamPrompt-WBC-v0 --entry random   a part of it
python benchmarks/leaderboard.py table                                       LEADERBOARD.md and leaderboard.html
python benchmarks/leaderboard.py check                                       is every stored record what it says?
python benchmarks/leaderboard.py add --help                                  your own agent, or a record of it
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sam_gym.cli import main
from sam_gym.commands.leaderboard import COMMANDS

if __name__ == "__main__":
    words = sys.argv[1:]
    named = any(word.split("=")[0] == "--board" for word in words)
    here = ["--board", os.path.relpath(Path(__file__).resolve().parent)]
    main(["leaderboard", *words, *(here if words and words[0] in COMMANDS and not named else [])])
