"""What turns an explanation and records into scores: a file a scorer. See base.py."""
