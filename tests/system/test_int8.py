import pytest

from edgeopt.system.int8 import Int8Scheme, int8_scheme


@pytest.mark.parametrize(
    ("isa", "name"),
    [
        (("avx2", "avx512f", "avx512_vnni"), "U8S8"),
        (("avx2", "avx_vnni"), "U8S8"),
        (("neon", "asimddp", "i8mm"), "U8S8"),
        (("avx2", "avx512f"), "U8S8 reduced range"),
        (("avx2",), "U8S8 reduced range"),
        (("neon", "asimddp"), "U8U8"),
        ((), "U8U8"),
    ],
)
def test_the_scheme_follows_the_instruction_sets(isa, name):
    scheme = int8_scheme(isa)
    assert scheme.name == name
    assert scheme.reason
    assert scheme.note


def test_only_the_full_range_signed_scheme_warns_of_saturation_elsewhere():
    assert "saturates on x86 CPUs without VNNI" in int8_scheme(("avx_vnni",)).note
    assert "saturates" not in int8_scheme(("avx2",)).note
    assert "saturates" not in int8_scheme(("neon",)).note


def test_the_scheme_is_that_of_this_machine_unless_another_is_given(monkeypatch):
    monkeypatch.setattr("edgeopt.system.int8.host_facts", lambda: {"isa": ["avx2"]})
    assert int8_scheme().name == "U8S8 reduced range"
    assert int8_scheme([]).name == "U8U8"


def test_an_unknown_integer_type_is_refused():
    with pytest.raises(ValueError, match="unknown integer type 'int4'; allowed: uint8, int8"):
        Int8Scheme(activations="uint8", weights="int4", reduce_range=False, reason="", note="")
