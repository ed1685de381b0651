"""The pipeline's own settings, and the YAML that they are read from."""
