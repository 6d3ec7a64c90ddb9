"""`fusionseg statistics` and `fusionseg best`: intervals, pooled cross-validation, paired tests, ranks."""
