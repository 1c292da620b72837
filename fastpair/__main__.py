"""``python -m fastpair`` prints the configuration."""

from fastpair.config import show_config

show_config()
