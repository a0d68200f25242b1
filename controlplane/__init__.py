"""Weir control plane daemon."""

import os

# Before gRPC is imported: whatever Weir forks it executes at once, and gRPC's own fork handlers can
# hang such a child for ever when a call is under way.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

__version__ = "0.1.0"
