"""The parts of opening a run's data: settings that must fit the data set, the preparation, the cache.

`fusionseg.training.data` joins them.
"""
