"""The files that are shipped with the package: lookup by name, the list of them, copies to start from."""
