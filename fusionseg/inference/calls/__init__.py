"""A call of `fusionseg predict`: its stages, share of the cases, record and files; the ranks of an evaluation."""
