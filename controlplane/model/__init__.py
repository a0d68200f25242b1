"""Frozen values shared by every part. Standard library only."""
