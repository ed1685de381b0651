"""What `tools/run_pipeline.py` and the tools around it do."""
