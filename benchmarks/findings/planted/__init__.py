"""Runs in which something is wrong: a file a finding, module-level ``Planted`` objects in it."""
