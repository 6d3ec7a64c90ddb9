"""`fusionseg compare`: one table over many runs."""
