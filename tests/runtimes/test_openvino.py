"""OpenVINO: what it compiled is read again where a folder keeps it, and computes the same."""

import numpy as np
import pytest

from edgeopt.runtimes.registry import load_session
from tests.artifacts import artifact_of, require_runtime


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_was_compiled_is_kept_and_computes_the_same(precision, tmp_path, monkeypatch):
    require_runtime("openvino", precision)
    from edgeopt.runtimes.sessions.openvino import OpenVINOSession

    artifact = artifact_of("openvino", precision)
    images = np.random.default_rng(0).random(artifact.input_shape, dtype=np.float32)
    expected = load_session(artifact)(images)
    monkeypatch.setattr(OpenVINOSession, "compiled", tmp_path)
    for _ in range(2):
        np.testing.assert_array_equal(load_session(artifact)(images), expected)
    assert len([*tmp_path.glob("*.blob")]) == 1
