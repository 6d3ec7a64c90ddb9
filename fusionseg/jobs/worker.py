"""Old name of `fusionseg.cluster.worker`: a torchrun that an older version started starts its ranks again by it."""

import runpy

if __name__ == "__main__":
    runpy.run_module("fusionseg.cluster.worker", run_name="__main__", alter_sys=True)
