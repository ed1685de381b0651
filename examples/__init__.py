"""Studies and the embedded data set, built on the packages."""
