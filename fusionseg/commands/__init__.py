"""The commands of `fusionseg`. Each imports its work when it runs, so that `--help` is quick.

May import: `utils`, `config`, `observability`, `data`, `models`, `distributed`, `runs`, `training`, `inference`,
`cluster`.
"""
