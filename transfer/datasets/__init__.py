"""Detection sets: registration with detectron2, and their faults."""
