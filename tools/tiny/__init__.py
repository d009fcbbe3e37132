"""Tiny models by architecture: a file for each family, whose functions write keys and tensors by their names.

A family's file has `MODELS`, names with a `Model` each. `Model.write(file, **sizes)` puts keys and tensors into a
`builder.File`, which knows how large weights must be for answers that are far from flat.
"""
from tiny import dense, gemma, gpts, mamba, mla, moes, relatives, shapes
from tiny.builder import Model, quantised, write

FAMILIES = [dense, gemma, gpts, mamba, mla, moes, relatives, shapes]
MODELS = {name: model for family in FAMILIES for name, model in family.MODELS.items()}
__all__ = ["MODELS", "Model", "quantised", "write"]
