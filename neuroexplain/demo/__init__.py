"""What the demo reads: part of the Brown corpus; see NOTICE."""
