"""What a unit can be: a file a kind. See base.py."""
