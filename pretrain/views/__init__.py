"""Random views of images, in batches."""
