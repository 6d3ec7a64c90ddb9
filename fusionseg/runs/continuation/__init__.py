"""Runs that go on with another configuration: extended in their folder, or branched into a new one."""
