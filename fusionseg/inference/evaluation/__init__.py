"""`fusionseg evaluate`: the cases of an evaluation, their scores, the tables and the picture."""
