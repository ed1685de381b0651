"""From a pipeline config to the stages it asks for."""
