"""Hyperparameters, one YAML an algorithm, and the results they gave. Read them with `importlib.resources`."""
