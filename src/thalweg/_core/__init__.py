"""Small things that every room shares; imports nothing from the rooms."""
