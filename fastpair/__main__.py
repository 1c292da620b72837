"""``python -m fastpair`` prints the configuration."""

from fastpair.diagnostics import show_config

show_config()
