"""Programs that an export copies beside an exported network. They import nothing else of fusionseg."""
