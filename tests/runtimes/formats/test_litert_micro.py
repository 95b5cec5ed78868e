"""Headers for microcontrollers: compiled, and their arena planned by hand."""

import shutil
import subprocess

import pytest

from edgeopt.runtimes.formats.litert_micro import (
    Lifetime,
    arena_bytes,
    planned_bytes,
    with_integer_borders,
    write_header,
)
from tests.artifacts import artifact_of

MAIN = """
#include <stdint.h>
#include <stdio.h>
#include "model.h"

int main(void) {
  fprintf(stderr, "%d %d\\n", MODEL_ARENA_BYTES, (int)((uintptr_t)model % 16));
  return fwrite(model, 1, MODEL_BYTES, stdout) == MODEL_BYTES ? 0 : 1;
}
"""


@pytest.mark.parametrize(
    ("lifetimes", "expected"),
    [
        ([], 0),
        ([(1, 0, 0)], 16),
        # a chain: 112 at 0, 64 above it, and 60 at 0 again, where the first has ended
        ([(100, 0, 1), (50, 1, 2), (60, 2, 3)], 112 + 64),
        # 48 and 32 live at once; 16 finds the gap that the 48 leaves below the 32
        ([(48, 0, 1), (32, 0, 2), (16, 2, 3)], 48 + 32),
        # no more than 80 are needed at once, but largest first puts 48 at 0, 32 above it, and the
        # second 32, which lives with the first 32 alone, at 0; the 16 above both of these
        ([(48, 0, 1), (32, 1, 2), (32, 2, 3), (16, 1, 3)], 48 + 32 + 16),
    ],
)
def test_planned_bytes_by_hand(lifetimes, expected):
    assert planned_bytes(Lifetime(*life) for life in lifetimes) == expected


def test_arena_bytes_of_the_small_network_by_hand():
    # Int8 tensors in order: image 784, conv1 4704, pool1 1176, conv2 1568, pool2 392, its
    # transposition and its flattening 392 each, logits 4; the float image has 3136 and lies where
    # conv1 comes. conv1 and pool1 live at once; everything else fits where these are.
    assert arena_bytes(artifact_of("litert", "int8").path.read_bytes()) == 4704 + 1184


@pytest.mark.parametrize("compiler", [("gcc", "c"), ("g++", "c++")])
def test_write_header_compiles_to_the_file(tmp_path, compiler):
    command, language = compiler
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")
    artifact = artifact_of("litert", "int8")
    write_header(artifact, tmp_path / "model.h")
    source, program = tmp_path / "main.c", tmp_path / "main"
    source.write_text(MAIN)
    flags = ["-Wall", "-Wextra", "-Werror", "-x", language]
    subprocess.run([command, *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, check=True)
    content = artifact.path.read_bytes()
    assert done.stdout == content
    assert done.stderr.split() == [str(arena_bytes(content)).encode(), b"0"]


def test_write_header_leaves_the_conversions_at_the_borders_out(tmp_path):
    artifact = artifact_of("litert", "int8")
    text = write_header(artifact, tmp_path / "model.h", integer_borders=True).read_text()
    content = with_integer_borders(artifact.path.read_bytes())
    assert len(content) < artifact.size_bytes
    assert f"#define MODEL_BYTES {len(content)}\n" in text
    with pytest.raises(ValueError, match=r"borders are \['DEPTHWISE_CONV_2D', 'FULLY_CONNECTED'\]"):
        write_header(artifact_of("litert", "fp32"), tmp_path / "fp32.h", integer_borders=True)


def test_write_header_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match=r"onnxruntime fp32\) is no \.tflite file"):
        write_header(artifact_of("onnxruntime", "fp32"), tmp_path / "model.h")
