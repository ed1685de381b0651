"""Backbone to detection AP: checkpoint conversion and detectron2 fine-tuning.

What detectron2 and fvcore compile when they are imported makes torch warn, of one kind or the other
by its release. It says nothing to a user, so that the only importer of detectron2 hides it.
"""

import warnings

for _kind in (FutureWarning, DeprecationWarning):
    warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", _kind)
