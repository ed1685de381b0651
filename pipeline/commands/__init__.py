"""The commands of `tools/run_pipeline.py` and of the tools around it."""
