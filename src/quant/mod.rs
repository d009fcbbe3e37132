//! Block layouts of the weight types: one file per family, scalar decode, repacked panel layout.
