"""DisTime: one time token per event. Importing the package registers its temporal head as ``distime``."""

from distime.time_head import TimeHead

__all__ = ["TimeHead"]
