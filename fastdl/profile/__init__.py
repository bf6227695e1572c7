"""What fastdl's ops take in a program: time, bytes, operations, and how far that is from what the machine can do.

``with profile() as taken:`` watches a block of code; ``fastdl profile`` an op, a model or a script; ``annotated()``
only names the ops' ranges, for a profiler of your own.
"""

from fastdl.profile.annotations import Call, annotated
from fastdl.profile.costs import Cost
from fastdl.profile.limits import Limits
from fastdl.profile.records import Accounts, Other, Record, Row
from fastdl.profile.sensors import Readings
from fastdl.profile.session import Profile, profile

__all__ = [
    "Accounts",
    "Call",
    "Cost",
    "Limits",
    "Other",
    "Profile",
    "Readings",
    "Record",
    "Row",
    "annotated",
    "profile",
]
