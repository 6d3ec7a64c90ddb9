"""The model card of a run, and the items of the checklist CLAIM that its files answer."""
