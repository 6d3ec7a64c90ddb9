"""Pages for people: of an evaluation and of a run, each one HTML file that requests nothing from elsewhere."""
