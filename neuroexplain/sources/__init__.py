"""The kinds of units, a file each. The protocol is in base.py."""
