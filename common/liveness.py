"""When a site counts as gone: constants that server and sites must share."""

from __future__ import annotations

from typing import Final

# The shortest heartbeat interval that Flower's SuperLink takes; it strikes a node off its list
# after two of them.
HEARTBEAT_SECONDS: Final = 10.0
STRUCK_OFF_AFTER: Final = 2 * HEARTBEAT_SECONDS
# How often a site really sends one, so that a server may give it up sooner than the SuperLink.
BEAT_EVERY: Final = 3.0
# After how many silent seconds a server stops waiting for a site's answer, if not told otherwise.
DROP_AFTER: Final = 12.0
