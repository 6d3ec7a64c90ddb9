"""Locks of folders, with and without file locks of the file system, and across machines."""
