"""The caches of prepared cases: what they have in common, where a run keeps them, and those that do not hold all cases.

`fusionseg.data.loading.device_cache` is the cache that holds all cases in memory.
"""
