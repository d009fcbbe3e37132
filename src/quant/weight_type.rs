//! The weight types that have kernels, each a row of the table of formats.

use super::format::Format;
use super::types::TensorType;

/// Declares the enum together with its tables: a type that has kernels is one line.
macro_rules! weight_types {
    ($($name:ident = $ty:ident),* $(,)?) => {
        /// The weight types that have kernels.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum WeightType { $(#[doc = concat!("[`TensorType::", stringify!($ty), "`].")] $name),* }

        impl WeightType {
            /// Every weight type, in the order of the kernel tables.
            pub const ALL: [WeightType; [$(TensorType::$ty),*].len()] = [$(WeightType::$name),*];

            /// Its row in the table of formats.
            pub const fn format(self) -> &'static Format {
                const FORMATS: [Option<&Format>; WeightType::ALL.len()] = [$(Format::of(TensorType::$ty)),*];
                FORMATS[self as usize].expect("only floats and blocks of quants are named here")
            }

            /// The weight type of a GGUF tensor type; `None` if it has no kernels here.
            pub const fn of(ty: TensorType) -> Option<Self> {
                match ty {
                    $(TensorType::$ty => Some(WeightType::$name),)*
                    _ => None,
                }
            }
        }
    };
}

weight_types! {
    F32 = F32, F16 = F16, BF16 = BF16, Q8_0 = Q8_0, Q4_0 = Q4_0, Q4K = Q4_K, Q6K = Q6_K,
    Q4_1 = Q4_1, Q5_0 = Q5_0, Q5_1 = Q5_1, Q2K = Q2_K, Q3K = Q3_K, Q5K = Q5_K,
    Iq1S = IQ1_S, Iq1M = IQ1_M, Iq2Xxs = IQ2_XXS, Iq2Xs = IQ2_XS, Iq2S = IQ2_S, Iq3Xxs = IQ3_XXS, Iq3S = IQ3_S,
    Iq4Nl = IQ4_NL, Iq4Xs = IQ4_XS, Tq1_0 = TQ1_0, Tq2_0 = TQ2_0, Mxfp4 = MXFP4, Nvfp4 = NVFP4, Q1_0 = Q1_0, Q2_0 = Q2_0,
}

/// What [`Format`] says, see there.
impl WeightType {
    /// [`Format::name`].
    pub const fn name(self) -> &'static str {
        self.format().name()
    }

    /// [`Format::short`].
    pub const fn short(self) -> &'static str {
        self.format().short()
    }

    /// [`Format::block_len`].
    pub const fn block_len(self) -> usize {
        self.format().block_len()
    }

    /// [`Format::block_bytes`].
    pub const fn block_bytes(self) -> usize {
        self.format().block_bytes()
    }

    /// [`Format::row_bytes`].
    pub const fn row_bytes(self, cols: usize) -> usize {
        self.format().row_bytes(cols)
    }

    /// [`Format::panel_bytes`].
    pub const fn panel_bytes(self, cols: usize) -> usize {
        self.format().panel_bytes(cols)
    }

    /// [`Format::panel_parts`].
    pub const fn panel_parts(self) -> (usize, usize) {
        self.format().panel_parts()
    }

    /// [`Format::matrix_bytes`].
    pub const fn matrix_bytes(self, rows: usize, cols: usize) -> usize {
        self.format().matrix_bytes(rows, cols)
    }

    /// [`Format::repack_panel`].
    pub fn repack_panel(self, rows: &[u8], cols: usize, panel: &mut [u8]) {
        self.format().repack_panel(rows, cols, panel);
    }

    /// [`Format::decode_row`].
    pub fn decode_row(self, row: &[u8], out: &mut [f32]) {
        self.format().decode_row(row, out);
    }

    /// [`Format::decode_panel_row`].
    pub fn decode_panel_row(self, panel: &[u8], row: usize, out: &mut [f32]) {
        self.format().decode_panel_row(panel, row, out);
    }
}
