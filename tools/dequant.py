#!/usr/bin/env python3
"""Copy a GGUF file (one file, or a whole split set given by its first part) with every matrix expanded to F32.

An engine that runs the copy in F32 gives the exact answer of the quantised file, so the distance of any engine on the
quantised file to that answer is the engine's own error. The expansion is done by the numpy code of the package `gguf`, or
by ggml for the two types that has not; neither shares code with brim.

  dequant.py IN.gguf OUT.gguf
"""
import argparse
import pathlib
import re
import sys

import gguf
import numpy as np

import ggml

# Written by GGUFWriter itself, or no longer true of the copy.
DROPPED = {"general.architecture", "general.file_type", "general.quantization_version"}


def to_f32(tensor):
    """The values of one tensor of a GGUFReader, in numpy order (slowest dimension first)."""
    shape = [int(d) for d in reversed(tensor.shape)]
    return ggml.to_f32(tensor.data, tensor.tensor_type).reshape(shape)


def parts(path):
    """All files of the set that `path` starts; just `path` when it is not split."""
    path = pathlib.Path(path)
    m = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path.name)
    if not m:
        return [path]
    return [path.with_name(f"{m[1]}-{i:05}-of-{m[2]}.gguf") for i in range(1, int(m[2]) + 1)]


def expand(src, dst):
    """Writes the F32 copy of `src` to `dst`. Holds all tensors in memory."""
    readers = [gguf.GGUFReader(p) for p in parts(src)]
    fields = readers[0].fields
    out = gguf.GGUFWriter(dst, fields["general.architecture"].contents())
    for name, field in fields.items():
        if name in DROPPED or name.startswith(("GGUF.", "split.")):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            out.add_array(name, field.contents())
        else:
            out.add_key_value(name, field.contents(), field.types[0])
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    # Beside an output matrix of another type than NVFP4 llama.cpp takes no factor of its products.
    factor = to_f32(tensors.pop("output.scale")) if "output.scale" in tensors else None
    tensors.pop("output.input_scale", None)
    for name, tensor in tensors.items():
        values = to_f32(tensor)
        out.add_tensor(name, values * factor if factor is not None and name == "output.weight" else values)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("src")
    args.add_argument("dst")
    a = args.parse_args()
    expand(a.src, a.dst)
    return 0


if __name__ == "__main__":
    sys.exit(main())
