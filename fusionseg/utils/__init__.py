"""Tools that do not depend on training: errors, files, folder locks, logs, output streams, processes, machine limits.

May import: nothing.
"""
