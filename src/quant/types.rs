//! The tensor types a GGUF file can name: ids, names and block sizes.
//!
//! Ids and block layouts are those of ggml (`ggml.h`, `ggml-common.h`), up to id 42. Every row of a tensor is a
//! whole number of blocks.

use std::fmt;

/// Declares the enum together with its tables, so that id, name and sizes are written once.
macro_rules! tensor_types {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $len:literal, $bytes:literal;)*) => {
        /// Type of a tensor's elements, numbered as in the file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        #[allow(non_camel_case_types, reason = "the names are ggml's, as printed everywhere")]
        pub enum TensorType { $($(#[$doc])* $name = $id,)* }

        impl TensorType {
            /// Every type, by rising id.
            pub const ALL: &'static [TensorType] = &[$(TensorType::$name),*];

            /// The type with this id in a file; `None` if it is unknown or was removed.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(TensorType::$name),)*
                    _ => None,
                }
            }

            /// Its name as ggml prints it, e.g. `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self { $(TensorType::$name => stringify!($name),)* }
            }

            /// Elements in one block.
            pub const fn block_len(self) -> usize {
                match self { $(TensorType::$name => $len,)* }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self { $(TensorType::$name => $bytes,)* }
            }
        }
    };
}

tensor_types! {
    /// 32-bit float.
    F32 = 0, 1, 4;
    /// 16-bit IEEE float.
    F16 = 1, 1, 2;
    /// 4 bits, scale per 32.
    Q4_0 = 2, 32, 18;
    /// 4 bits, scale and minimum per 32.
    Q4_1 = 3, 32, 20;
    /// 5 bits, scale per 32.
    Q5_0 = 6, 32, 22;
    /// 5 bits, scale and minimum per 32.
    Q5_1 = 7, 32, 24;
    /// 8 bits, scale per 32.
    Q8_0 = 8, 32, 34;
    /// 8 bits, scale and sum per 32; an activation type.
    Q8_1 = 9, 32, 36;
    /// 2 bits, superblock of 256.
    Q2_K = 10, 256, 84;
    /// 3 bits, superblock of 256.
    Q3_K = 11, 256, 110;
    /// 4 bits, superblock of 256.
    Q4_K = 12, 256, 144;
    /// 5 bits, superblock of 256.
    Q5_K = 13, 256, 176;
    /// 6 bits, superblock of 256.
    Q6_K = 14, 256, 210;
    /// 8 bits, superblock of 256; an activation type.
    Q8_K = 15, 256, 292;
    /// 2.06 bits from a codebook.
    IQ2_XXS = 16, 256, 66;
    /// 2.31 bits from a codebook.
    IQ2_XS = 17, 256, 74;
    /// 3.06 bits from a codebook.
    IQ3_XXS = 18, 256, 98;
    /// 1.56 bits from a codebook.
    IQ1_S = 19, 256, 50;
    /// 4 bits on a non-linear grid, scale per 32.
    IQ4_NL = 20, 32, 18;
    /// 3.44 bits from a codebook.
    IQ3_S = 21, 256, 110;
    /// 2.56 bits from a codebook.
    IQ2_S = 22, 256, 82;
    /// 4 bits on a non-linear grid, superblock of 256.
    IQ4_XS = 23, 256, 136;
    /// 8-bit integer.
    I8 = 24, 1, 1;
    /// 16-bit integer.
    I16 = 25, 1, 2;
    /// 32-bit integer.
    I32 = 26, 1, 4;
    /// 64-bit integer.
    I64 = 27, 1, 8;
    /// 64-bit float.
    F64 = 28, 1, 8;
    /// 1.75 bits from a codebook.
    IQ1_M = 29, 256, 56;
    /// The upper half of a 32-bit float.
    BF16 = 30, 1, 2;
    /// Ternary, five digits to a byte.
    TQ1_0 = 34, 256, 54;
    /// Ternary, two bits to a digit.
    TQ2_0 = 35, 256, 66;
    /// 4-bit floats (E2M1), power-of-two scale per 32.
    MXFP4 = 39, 32, 17;
    /// 4-bit floats (E2M1), E4M3 scale per 16, four of these to a block.
    NVFP4 = 40, 64, 36;
    /// One bit, scale per 128.
    Q1_0 = 41, 128, 18;
    /// Two bits, scale per 64.
    Q2_0 = 42, 64, 18;
}

impl TensorType {
    /// The largest id there is.
    pub const ID_MAX: u32 = TensorType::ALL[TensorType::ALL.len() - 1].id();

    /// The name of a type that once had this id and was removed from the format.
    pub const fn removed_name(id: u32) -> Option<&'static str> {
        match id {
            4 => Some("Q4_2"),
            5 => Some("Q4_3"),
            31 => Some("Q4_0_4_4"),
            32 => Some("Q4_0_4_8"),
            33 => Some("Q4_0_8_8"),
            36 => Some("IQ4_NL_4_4"),
            37 => Some("IQ4_NL_4_8"),
            38 => Some("IQ4_NL_8_8"),
            _ => None,
        }
    }

    /// Its id in a file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a row of `cols` elements; `None` if these are not whole blocks or the bytes overflow.
    pub fn row_bytes(self, cols: u64) -> Option<u64> {
        let block_len = self.block_len() as u64;
        if !cols.is_multiple_of(block_len) {
            return None;
        }
        (cols / block_len).checked_mul(self.block_bytes() as u64)
    }

    /// Bits one element takes on average, scales included.
    pub fn bits_per_element(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_a_type_or_removed() {
        for id in 0..=TensorType::ID_MAX {
            assert!(TensorType::from_id(id).is_some() != TensorType::removed_name(id).is_some(), "id {id}");
        }
        assert_eq!(TensorType::ALL.iter().map(|ty| ty.id()).max(), Some(TensorType::ID_MAX));
        assert_eq!(TensorType::from_id(TensorType::ID_MAX + 1), None);
        assert_eq!(TensorType::removed_name(TensorType::ID_MAX + 1), None);
    }

    #[test]
    fn ids_and_names_go_there_and_back() {
        for &ty in TensorType::ALL {
            assert_eq!(TensorType::from_id(ty.id()), Some(ty));
        }
        assert_eq!(TensorType::Q4_K.name(), "Q4_K");
        assert_eq!(format!("{:>6}", TensorType::F16), "   F16");
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(TensorType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(TensorType::Q4_K.row_bytes(511), None);
        assert_eq!(TensorType::Q8_0.row_bytes(0), Some(0));
        assert_eq!(TensorType::F64.row_bytes(u64::MAX), None);
        assert_eq!(TensorType::Q6_K.bits_per_element(), 6.5625);
    }
}
