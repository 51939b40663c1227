import hypothesis
import pytest

hypothesis.settings.register_profile("visiontower", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("visiontower")


@pytest.fixture
def anyio_backend() -> str:
    """Async tests (`pytest.mark.anyio`) run on asyncio, which the service is written for."""
    return "asyncio"
