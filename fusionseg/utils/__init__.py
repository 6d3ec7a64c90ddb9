"""Parts that do not depend on training: errors, atomic files, folder locks, machine limits, exit status, tables, logs.

May import: nothing.
"""
