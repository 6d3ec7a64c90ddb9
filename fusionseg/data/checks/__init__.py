"""The checks of `fusionseg check`."""
