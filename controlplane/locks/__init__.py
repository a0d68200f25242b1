"""Locks whose fencing tokens never go back."""
