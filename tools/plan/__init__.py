"""Memory, communication and time of a training step, predicted from the configuration. `python -m tools.plan`."""
