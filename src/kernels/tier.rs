//! The names of the tiers of kernels.

/// CPU tiers, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Any CPU.
    Scalar,
    /// AVX2, FMA, F16C.
    Avx2,
    /// The same with AVX-VNNI.
    Avx2Vnni,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// The same with VBMI for the partitions of IQ2 and IQ3, on CPUs that also have AVX-512 BF16 (Zen 4 and later).
    Avx512Bf16,
}

impl Tier {
    /// All tiers, weakest first.
    pub const ALL: [Tier; 5] = [Tier::Scalar, Tier::Avx2, Tier::Avx2Vnni, Tier::Avx512, Tier::Avx512Bf16];

    /// The name, as in `--isa`.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Scalar => "scalar",
            Tier::Avx2 => "avx2",
            Tier::Avx2Vnni => "avx2vnni",
            Tier::Avx512 => "avx512",
            Tier::Avx512Bf16 => "avx512bf16",
        }
    }
}
