//! The tiers of x86-64.
#![allow(unsafe_code)]

use super::instantiate::names::*;
use super::instantiate::{align_frame, always, finished, tier, unpack};
use crate::kernels::cpu::{self, CoreKind};
use crate::kernels::simd::x86_64::avx2::Avx2;
use crate::kernels::simd::x86_64::avx512::Avx512;

/// Weakest first.
pub const TIERS: &[&TierEntry] = &[
    &avx2::ENTRY,
    #[cfg(feature = "avx2vnni")]
    &avx2vnni::ENTRY,
    &avx512::ENTRY,
    &avx512bf16::ENTRY,
];

/// What it takes to run a tier that this build has not.
pub const LACKING: &str = "a brim that was built with the feature avx2vnni";

/// The kernels of avx2 wherever integers are not multiplied: the two differ in nothing else.
#[cfg(feature = "avx2vnni")]
const fn with_floats_of_avx2(table: Kernels) -> Kernels {
    const BASE: Kernels = avx2::TABLE;
    let mut dedicated = table.dedicated;
    dedicated[WeightType::F32 as usize] = BASE.dedicated[WeightType::F32 as usize];
    dedicated[WeightType::F16 as usize].stream = BASE.dedicated[WeightType::F16 as usize].stream;
    dedicated[WeightType::BF16 as usize].stream = BASE.dedicated[WeightType::BF16 as usize].stream;
    let Kernels { tier, unpack, products, quantise, quantise_block, attend, .. } = table;
    Kernels {
        tier,
        dedicated,
        unpack,
        products,
        quantise,
        quantise_block,
        attend,
        #[cfg(feature = "bench")]
        peaks: table.peaks,
        ..BASE
    }
}

tier!(
    avx2,
    Tier::Avx2,
    Avx2<false>,
    // SAFETY: the enclosing function carries the tier's feature list, so it runs only where the probe succeeded.
    unsafe { Avx2::<false>::assume() },
    ["avx2", "fma", "f16c"],
    always,
    finished,
    V = 2,
    N = 3,
    NS = 2,
    NF = 6,
    NH = 4
);

#[cfg(feature = "avx2vnni")]
tier!(
    avx2vnni,
    Tier::Avx2Vnni,
    Avx2<true>,
    // SAFETY: as above.
    unsafe { Avx2::<true>::assume() },
    ["avx2", "fma", "f16c", "avxvnni"],
    always,
    with_floats_of_avx2,
    V = 2,
    N = 5,
    NS = 2,
    NF = 6,
    NH = 5
);

tier!(
    avx512,
    Tier::Avx512,
    Avx512<false>,
    // SAFETY: as above.
    unsafe { Avx512::<false>::assume() },
    ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx2", "fma", "f16c"],
    always,
    finished,
    V = 2,
    N = 4,
    NS = 4,
    NF = 12,
    NH = 6
);

/// The avx512 tier with look-ups of bytes in large tables, and of CPUs that have bf16 dot products.
pub mod avx512bf16 {
    use super::*;

    pub const FEATURES: &str = "avx512f avx512bw avx512dq avx512vl avx512vnni avx512bf16 avx512vbmi avx2 fma f16c ";

    pub fn probe() -> bool {
        let detected =
            (std::arch::is_x86_feature_detected!("avx512bf16"), std::arch::is_x86_feature_detected!("avx512vbmi"));
        avx512::probe() && detected == (true, true)
    }

    #[cfg(feature = "bench")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c")]
    fn bf16_dots(rounds: usize) -> u64 {
        // SAFETY: this function carries the tier's feature list, so it runs only where the probe succeeded.
        peak::bf16_dots(unsafe { Avx512::<true>::assume() }, rounds)
    }

    /// [`unpack`] for this tier.
    macro_rules! codebook {
        ($format:ident) => {
            unpack!(
                ["avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c"],
                Avx512<true>,
                // SAFETY: as above.
                unsafe { Avx512::<true>::assume() },
                $format
            )
        };
    }

    pub static KERNELS: Kernels = {
        let mut table = avx512::TABLE;
        table.unpack[WeightType::Iq2Xxs as usize - DEDICATED_TYPES] = codebook!(Iq2Xxs);
        table.unpack[WeightType::Iq2Xs as usize - DEDICATED_TYPES] = codebook!(Iq2Xs);
        table.unpack[WeightType::Iq2S as usize - DEDICATED_TYPES] = codebook!(Iq2S);
        table.unpack[WeightType::Iq3Xxs as usize - DEDICATED_TYPES] = codebook!(Iq3Xxs);
        table.unpack[WeightType::Iq3S as usize - DEDICATED_TYPES] = codebook!(Iq3S);
        #[cfg(feature = "bench")]
        {
            table.peaks.bf16_dots = Some(bf16_dots);
        }
        table.tier = Tier::Avx512Bf16;
        table.in_order()
    };

    pub static ENTRY: TierEntry =
        TierEntry { tier: Tier::Avx512Bf16, features: FEATURES, probe, gains: bf16_dots_gain, kernels: &KERNELS };

    /// Whether `vdpbf16ps` is faster than two f32 multiply-adds: twice as fast on AMD since Zen 4; on Intel, where AMX
    /// is the bf16 unit, half as fast (1.7 against 6.7 thousand million a second were measured on one core of a Xeon).
    fn bf16_dots_gain() -> bool {
        cpu::core() != CoreKind::Other
    }
}
