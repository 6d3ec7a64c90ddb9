"""Programs that an export copies beside an exported network. They import nothing of fusionseg."""
