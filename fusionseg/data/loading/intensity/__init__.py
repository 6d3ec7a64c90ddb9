"""The built-in augmentations of intensities: one module for each, or for each family.

A module has one class, decorated with `@augmentations.register("key")`: the section `augment.key` with its keys, and
the methods that draw and apply the change (`section.IntensitySection`). `fusionseg.config` makes the section `augment`
from these classes, so the modules import torch and numpy inside their methods alone.
"""

import fusionseg.config as _config  # noqa: F401

# The line above is not needed for a name. `fusionseg.config` imports all modules of this folder, so it must be imported
# before the first of them: a module that is half imported could not be found then.
