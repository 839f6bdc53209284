"""Runs in which nothing is wrong: a file a task, module-level ``Healthy`` objects in it."""
