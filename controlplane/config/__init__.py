"""One YAML file for all daemons, with `WEIR_SECTION__KEY` environment variables over it.

Unknown keys are refused with file, line and the nearest known key; ranges are checked here, across
fields too, so that a bad file changes nothing: a daemon refuses to start with it, and a reload
keeps the last good one. Secrets never stand in this file: only names of files that hold them.
"""

from __future__ import annotations

from controlplane.config.loading import ConfigError, load, parse
from controlplane.config.sections import ProbeSection, TlsSection
from controlplane.config.whole import ENV_PREFIX, WeirConfig

__all__ = ["ENV_PREFIX", "ConfigError", "ProbeSection", "TlsSection", "WeirConfig", "load", "parse"]
