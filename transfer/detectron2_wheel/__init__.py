"""A detectron2 from PyPI alone: looked for, built, installed."""
