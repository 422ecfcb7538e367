"""What all suites share: how many cases hypothesis makes. Fixtures live beside their users."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No deadline: the cores are shared, and a slow moment is no wrong answer.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", settings.get_profile("default"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
