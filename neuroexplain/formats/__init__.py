"""How runs are written for others, and read: a file a format. See base.py."""
