"""What holds for every test.

Tests start real servers as children of a process in which gRPC runs threads. gRPC's own fork
handlers would make such a child die now and then; our children are exec'ed at once and need none.
The switch is read when grpc is imported, so it is set here, before any test module.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
