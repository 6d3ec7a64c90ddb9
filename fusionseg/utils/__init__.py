"""Parts that know nothing of training: errors, whole files, folder locks, machine facts, exit status, tables, logs.

May import: nothing.
"""
