"""How laws are tested: by inputs that hypothesis makes, the same in every run."""

from hypothesis import HealthCheck, settings

LAW = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
