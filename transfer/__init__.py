"""Backbone to detection AP: checkpoint conversion and detectron2 fine-tuning."""
