"""Code that the configuration of a run folder or of an archive names: what it is, who has used it, who allows it."""
