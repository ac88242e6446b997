"""Time and bytes of an operator: measured, else learned, else roofline; every estimate says which."""

from gradbase.cost._errors import QErrors, q_errors
from gradbase.cost._estimate import estimate
from gradbase.cost._host import HostMeasurements, host_profile, measure_host, profile_from_measurements
from gradbase.cost._learned import LearnedModel, Validation, fit, validate
from gradbase.cost._profiles import PROFILES, DeviceProfile, get_profile, tier_from_profile
from gradbase.cost._roofline import roofline

__all__ = [
    "PROFILES",
    "DeviceProfile",
    "HostMeasurements",
    "LearnedModel",
    "QErrors",
    "Validation",
    "estimate",
    "fit",
    "get_profile",
    "host_profile",
    "measure_host",
    "profile_from_measurements",
    "q_errors",
    "roofline",
    "tier_from_profile",
    "validate",
]
