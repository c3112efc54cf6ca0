"""The leaderboard: a board is a folder of a manifest, records and agents; `sam-gym leaderboard` works on it.

`board` says what belongs on it and checks it, `running` fills it, `standings` and `summaries` say what tables show,
`tables` and `page` show it. The package holds the published standings, standings.json. This file imports nothing, so
that the command line stays quick.
"""
