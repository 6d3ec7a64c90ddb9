"""Named faults: what happens, what the user sees, what is lost, what to do, and the tests that show it."""
