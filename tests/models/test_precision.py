"""What a processor says of itself, and which precision is faster on it."""

from pathlib import Path

import pytest

from glmtune.models import precision

PROCESSORS = {
    "Zen 4": ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16\n", True, True),
    "Zen 3": ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2\n", False, False),
    "Cooper Lake": ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16\n", False, True),
    "Sapphire Rapids": ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n", True, True),
    "Graviton 3": ("processor\t: 0\nFeatures\t: fp asimd asimdhp bf16\n", True, True),
    "unknown": ("", False, False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_bfloat16_is_taken_where_it_is_faster(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, faster, has_any = PROCESSORS[name]
    monkeypatch.setattr(precision.platform, "system", lambda: "Linux")
    monkeypatch.setattr(Path, "read_text", lambda path, *_: text)
    for asked in (precision.flags, precision.has_units):
        asked.cache_clear()
    try:
        assert precision.has_bf16_units() == faster
        assert precision.has_units("bfloat16") == has_any
        assert precision.on_cpu("auto", wide=False) == ("bfloat16" if faster else "float32")
    finally:
        for asked in (precision.flags, precision.has_units):
            asked.cache_clear()
