"""Old name of `fusionseg.cluster`: a job that an older version queued is unpickled from here. Nothing else uses it."""
