"""Where the scores of spans were; saved configs name them here. They are in ``videollm.common.spans``."""

from videollm.common.spans import *  # noqa: F403
