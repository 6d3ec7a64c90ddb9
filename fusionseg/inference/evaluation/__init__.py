"""`fusionseg evaluate`: the cases, their scores, the tables and figures."""
