"""What must not leave this machine, and the only door through which anything does.

request ── detectors ──▶ findings ── Guard.judge ──▶ allow · mask · ask · pin-local · block
                                     Guard.stream ─▶ mask ── remote ── restore ──▶ events
"""

from edgellm.routing.privacy.detectors import KINDS, Finding, find
from edgellm.routing.privacy.guard import Guard
from edgellm.routing.privacy.options import PrivacyOptions

__all__ = ["KINDS", "Finding", "Guard", "PrivacyOptions", "find"]
