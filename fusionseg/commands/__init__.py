"""The commands of `fusionseg`. A command imports its libraries when it runs, so that `--help` is fast.

May import: `utils`, `config`, `observability`, `data`, `models`, `distributed`, `runs`, `training`, `planning`,
`inference`, `export`, `cluster`.
"""
