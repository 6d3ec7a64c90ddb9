"""One call of `fusionseg predict`: its stages, its share of the cases, its record, and its files beside the masks."""
