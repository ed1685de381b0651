"""Settings of conversion, fine-tuning and detection sets; imports neither torch nor detectron2."""
