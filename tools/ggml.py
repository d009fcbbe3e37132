"""Weight types as ggml's own C knows them (the library inside llama-cpp-python), and those that the package `gguf` lacks.

Not a command. Importing it teaches `gguf` the ids and block sizes of all weight types, so that its reader and writer take
them; values of the types it cannot decode come from ggml.
"""
import ctypes
import importlib.util
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

IDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
       "Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21,
       "IQ2_S": 22, "IQ4_XS": 23, "IQ1_M": 29, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40, "Q1_0": 41,
       "Q2_0": 42}


class Ggml:
    """Block sizes and decoders of the ggml library inside llama-cpp-python."""

    class Traits(ctypes.Structure):
        _fields_ = [("name", ctypes.c_char_p), ("block_len", ctypes.c_int64), ("interleave", ctypes.c_int64),
                    ("block_bytes", ctypes.c_size_t), ("is_quantized", ctypes.c_bool),
                    ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
                    ("from_float", ctypes.c_void_p)]

    def __init__(self):
        package = pathlib.Path(importlib.util.find_spec("llama_cpp").origin).parent
        self.lib = ctypes.CDLL(str(package / "lib" / "libggml-base.so"))
        self.lib.ggml_get_type_traits.restype = ctypes.POINTER(self.Traits)
        self.lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
        self.lib.ggml_version.restype = ctypes.c_char_p

    def traits(self, name):
        traits = self.lib.ggml_get_type_traits(IDS[name]).contents
        assert traits.name.decode().upper() == name, (traits.name, name)
        return traits

    def decode(self, name, blocks):
        traits = self.traits(name)
        if name == "F32":
            return blocks.reshape(-1).view("<f4").copy()
        out = np.empty(len(blocks) * traits.block_len, np.float32)
        traits.to_float(blocks.ctypes.data, out.ctypes.data, out.size)
        return out


GGML = Ggml()


def teach_gguf():
    """Adds to the package's enumeration and table of sizes what they lack."""
    for name, number in IDS.items():
        if name not in GGMLQuantizationType.__members__:
            member = int.__new__(GGMLQuantizationType, number)
            member._name_, member._value_ = name, number
            GGMLQuantizationType._member_map_[name] = member
            GGMLQuantizationType._value2member_map_[number] = member
        traits = GGML.traits(name)
        gguf.GGML_QUANT_SIZES.setdefault(GGMLQuantizationType[name], (traits.block_len, traits.block_bytes))


teach_gguf()


def to_f32(data, kind):
    """The values of blocks of type `kind`, by the numpy code of `gguf`, or by ggml where that has none."""
    try:
        return np.ascontiguousarray(dequantize(data, kind), np.float32)
    except NotImplementedError:
        blocks = np.ascontiguousarray(data).reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
        return GGML.decode(kind.name, blocks)
