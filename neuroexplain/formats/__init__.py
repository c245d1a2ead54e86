"""Formats for export and import, one file for each: see base.py."""
