"""The encoders that an engine gets, as its settings say."""

from service.engine.backend import real_backend
from service.settings import Settings


def test_a_service_plans_with_the_runtime_that_it_has() -> None:
    specs = {
        runtime: real_backend(Settings(device="cpu", runtime=runtime)).blueprint("demo:vit", None).spec
        for runtime in ("torch", "openvino")
    }
    assert {runtime: spec.runtime for runtime, spec in specs.items()} == {"torch": "torch", "openvino": "openvino"}
    assert specs["torch"].weights_bytes < specs["openvino"].weights_bytes
