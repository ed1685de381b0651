"""The plan: stages, signatures, run folders, executors and the report. Imports no torch."""
