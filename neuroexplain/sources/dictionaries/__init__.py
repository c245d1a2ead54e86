"""The formats of dictionaries (SAEs and transcoders), a file each. The protocol is in base.py."""
