"""Commands about trained runs, a module for each."""
