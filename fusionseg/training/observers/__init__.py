"""Parts that watch a training: the recorder, the GPU monitor, the profile range."""
