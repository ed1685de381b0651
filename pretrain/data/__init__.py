"""Images and labels as data sets keep them on disk; only `images` imports torch."""
