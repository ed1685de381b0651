"""The embedded data set: handwritten digits drawn into scenes and crops."""
