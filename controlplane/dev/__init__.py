"""The local topology behind `weir dev` and `weir chaos`."""
