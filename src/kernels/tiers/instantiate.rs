//! What compiles every kernel for one tier, with its features, into the table that [`Kernels`] calls through.
#![allow(unsafe_code)]

use crate::kernels::simd::scalar::Scalar;
use names::*;

/// Aligns the frame of the function that it is inlined into, to where vectors do not cross cache lines. The compiler keeps those
/// in the frame that it has no registers for, and must know before it counts them that the frame can be aligned: it does where
/// there is a variable that needs it. (Zen 4, six registers kept, frame off by 16: 20 % slower.)
#[inline(always)]
pub fn align_frame() {
    #[repr(align(64))]
    struct Line(#[allow(dead_code, reason = "bytes to be aligned")] [u8; 64]);
    let mut line = Line([0; 64]);
    std::hint::black_box(&mut line);
}

/// What the macros name.
pub(super) mod names {
    pub use std::ops::Range;

    pub use crate::kernels::activations::{
        ActivationFormat, ActivationLayout, ActivationRows, Activations, quantise as quantise_row,
        quantise_block as quantise_one,
    };
    pub use crate::kernels::attention::{
        KvHead, KvType, LatentQueries, Queries, RowResult, absorb as absorb_rows, attend as attend_rows,
        attend_latent as attend_latent_rows, store_key as store_one_key, store_value as store_one_value,
    };
    pub use crate::kernels::delta::DeltaToken;
    pub use crate::kernels::delta_chunk::DELTA_CHUNK;
    pub use crate::kernels::formats::dedicated::{FloatFormat, IntFormat};
    pub use crate::kernels::matmul::kind::ProductKind;
    pub use crate::kernels::matmul::unpacked::Unpack;
    pub use crate::kernels::matmul::{Matrix, float, int, pairs16, unpacked};
    pub use crate::kernels::partition::OutTile;
    #[cfg(feature = "bench")]
    pub(in crate::kernels) use crate::kernels::peak::{self, ReadWay};
    pub use crate::kernels::repack::panel as repack_rows;
    pub use crate::kernels::rowwise::{Activation, RowNorm};
    pub use crate::kernels::simd::Simd;
    pub use crate::kernels::ssm::SsmRates;
    #[cfg(feature = "bench")]
    pub use crate::kernels::table::Peaks;
    pub use crate::kernels::table::{DEDICATED_TYPES, Dedicated, Kernels};
    pub use crate::kernels::tier::Tier;
    pub use crate::kernels::tiers::entry::TierEntry;
    pub use crate::kernels::tiling::{PrefetchDistance, STREAM_TOKENS_MAX};
    pub(in crate::kernels) use crate::kernels::{delta, delta_chunk, formats, recurrent, rowwise, ssm};
    pub use crate::quant::{PANEL_ROWS, WeightType};
}

/// How a type is unpacked, compiled for the features of a tier.
macro_rules! unpack {
    ([$($feature:literal),*], $simd:ty, $token:expr, $format:ident) => {{
        $(#[target_feature(enable = $feature)])*
        fn fill(blocks: &[u8], tile: &mut unpacked::UnpackedTile<'_>, ahead: PrefetchDistance) {
            unpacked::fill::<_, formats::$format>($token, blocks, tile, ahead);
        }
        $(#[target_feature(enable = $feature)])*
        fn stream(panel: &[u8], rows: &ActivationRows<'_>, ahead: PrefetchDistance, out: &mut [f32; PANEL_ROWS]) {
            align_frame();
            unpacked::stream::<_, formats::$format>($token, panel, rows, ahead, out);
        }
        Unpack::new::<$simd, formats::$format>(fill, stream)
    }};
}

/// Emits one tier: the probe, the entry points with the very same feature list, the table and its entry in the list. `V` vectors of rows and
/// `N` tokens are the register block of integer prefill, `NS` tokens where scales are integers (their sums take three
/// registers where the others take two), `NF` tokens that of f32 prefill, `NH` that of 16-bit floats. The table goes
/// through `$finish`, where it may take kernels of another tier.
macro_rules! tier {
    ($module:ident, $tier:expr, $simd:ty, $token:expr, [$($feature:tt),*], $gains:expr, $finish:expr, V = $v:literal, N = $n:literal, NS = $ns:literal, NF = $nf:literal, NH = $nh:literal) => {
        #[allow(clippy::undocumented_unsafe_blocks, reason = "why `$token` holds is said where the tier is declared")]
        pub mod $module {
            use super::*;

            /// The CPU features of the tier.
            pub const FEATURES: &str = concat!("", $($feature, " "),*);

            /// Whether this CPU has them all.
            pub fn probe() -> bool {
                true $(&& std::arch::is_x86_feature_detected!($feature))*
            }

            const STRIPE_ROWS: usize = $v * <$simd as Simd>::LANES;

            macro_rules! dedicated {
                ($name:ident, $few:ident, $many:ident, $format:ident, $tokens:literal) => {
                    pub mod $name {
                        use super::*;

                        $(#[target_feature(enable = $feature)])*
                        fn stream(
                            w: &Matrix<'_>,
                            acts: &Activations<'_>,
                            out: &mut OutTile<'_, f32>,
                            accumulate: bool,
                            ahead: PrefetchDistance,
                        ) {
                            align_frame();
                            $few::stream::<_, formats::$format>($token, w, acts, out, accumulate, ahead);
                        }

                        $(#[target_feature(enable = $feature)])*
                        fn tiled(
                            w: &Matrix<'_>,
                            acts: &Activations<'_>,
                            out: &mut OutTile<'_, f32>,
                            accumulate: bool,
                            tile: (&mut [u8], usize),
                        ) {
                            use formats::$format as Format;
                            if !<$simd as Simd>::FAST {
                                return stream(w, acts, out, accumulate, PrefetchDistance::NONE);
                            }
                            align_frame();
                            $many::tiled::<_, Format, $v, $tokens>($token, w, acts, out, accumulate, tile);
                        }

                        pub const KERNELS: Dedicated = Dedicated { ty: formats::$format::TYPE, stream, tiled };
                    }
                };
            }
            dedicated!(f32s, float, float, F32, $nf);
            dedicated!(f16s, float, pairs16, F16, $nh);
            dedicated!(bf16s, float, pairs16, Bf16, $nh);
            dedicated!(q8_0, int, int, Q8_0, $n);
            dedicated!(q4_0, int, int, Q4_0, $n);
            dedicated!(q4k, int, int, Q4K, $ns);
            dedicated!(q6k, int, int, Q6K, $ns);

            const UNPACK: [Unpack; WeightType::ALL.len() - DEDICATED_TYPES] = [
                unpack!([$($feature),*], $simd, $token, Q4_1),
                unpack!([$($feature),*], $simd, $token, Q5_0),
                unpack!([$($feature),*], $simd, $token, Q5_1),
                unpack!([$($feature),*], $simd, $token, Q2K),
                unpack!([$($feature),*], $simd, $token, Q3K),
                unpack!([$($feature),*], $simd, $token, Q5K),
                unpack!([$($feature),*], $simd, $token, Iq1S),
                unpack!([$($feature),*], $simd, $token, Iq1M),
                unpack!([$($feature),*], $simd, $token, Iq2Xxs),
                unpack!([$($feature),*], $simd, $token, Iq2Xs),
                unpack!([$($feature),*], $simd, $token, Iq2S),
                unpack!([$($feature),*], $simd, $token, Iq3Xxs),
                unpack!([$($feature),*], $simd, $token, Iq3S),
                unpack!([$($feature),*], $simd, $token, Iq4Nl),
                unpack!([$($feature),*], $simd, $token, Iq4Xs),
                unpack!([$($feature),*], $simd, $token, Tq1_0),
                unpack!([$($feature),*], $simd, $token, Tq2_0),
                unpack!([$($feature),*], $simd, $token, Mxfp4),
                unpack!([$($feature),*], $simd, $token, Nvfp4),
                unpack!([$($feature),*], $simd, $token, Q1_0),
                unpack!([$($feature),*], $simd, $token, Q2_0),
            ];

            macro_rules! product {
                ($name:ident, $kind:ident) => {
                    $(#[target_feature(enable = $feature)])*
                    fn $name(
                        w: (&Matrix<'_>, &Unpack),
                        acts: &Activations<'_>,
                        out: &mut OutTile<'_, f32>,
                        accumulate: bool,
                        (scratch, k_cols, ahead): (&mut [u8], usize, PrefetchDistance),
                    ) {
                        const PANEL: usize = PANEL_ROWS / <$simd as Simd>::LANES;
                        const KIND: usize = ProductKind::$kind.on::<$simd>() as usize;
                        const N: usize = ProductKind::$kind.tokens::<$simd>($n);
                        align_frame();
                        let (cols, few) = (out.cols, acts.n_tokens <= STREAM_TOKENS_MAX);
                        // One panel after the other, so that few tokens read them front to back.
                        let (step, ahead) = if few { (PANEL_ROWS, ahead) } else { (cols, PrefetchDistance::NONE) };
                        for next in (0..cols).step_by(step.max(1)) {
                            let (tile, part) = ((&mut *scratch, k_cols, ahead), next..cols.min(next + step));
                            unpacked::product::<_, KIND, $v, PANEL, N>(
                                $token, w, acts, (&mut *out, part), accumulate, tile,
                            );
                        }
                    }
                };
            }
            product!(groups32, Groups32);
            product!(groups32_mins, Groups32Mins);
            product!(groups16, Groups16);
            product!(super32, Super32);
            product!(super32_mins, Super32Mins);
            product!(super16, Super16);
            product!(super16_mins, Super16Mins);
            product!(groups32_bytes, Groups32Bytes);
            product!(super32_seven, Super32Seven);
            product!(super32_bytes, Super32Bytes);
            product!(super16_seven, Super16Seven);

            $(#[target_feature(enable = $feature)])*
            fn repack(ty: WeightType, rows: (&[u8], &[u8]), cols: usize, panel: &mut [u8]) {
                repack_rows($token, ty, rows, cols, panel)
            }

            $(#[target_feature(enable = $feature)])*
            fn quantise(layout: ActivationLayout, kind: ActivationFormat, record: &mut [u8]) {
                quantise_row($token, layout, kind, record, |kind, values, block| quantise_block(kind, values, block))
            }

            $(#[target_feature(enable = $feature)])*
            fn quantise_block(kind: ActivationFormat, values: &[f32], block: &mut [u8]) {
                quantise_one($token, kind, values, block)
            }

            $(#[target_feature(enable = $feature)])*
            fn attend(
                kv: &KvHead<'_>,
                queries: &Queries<'_>,
                keys: Range<usize>,
                scratch: &mut [f32],
                put: &mut dyn FnMut(RowResult<'_>),
            ) {
                align_frame();
                attend_rows($token, kv, queries, keys, scratch, put)
            }

            $(#[target_feature(enable = $feature)])*
            fn attend_latent(
                kv: &KvHead<'_>,
                queries: &LatentQueries<'_>,
                keys: Range<usize>,
                scratch: &mut [f32],
                put: &mut dyn FnMut(RowResult<'_>),
            ) {
                align_frame();
                attend_latent_rows($token, kv, queries, keys, scratch, put)
            }

            $(#[target_feature(enable = $feature)])*
            fn absorb(rows: &[f32], x: &[f32], out: &mut [f32]) {
                absorb_rows($token, rows, x, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn store_key(kv_type: KvType, key: &[f32], panel: &mut [u8], lane: usize) {
                store_one_key($token, kv_type, key, panel, lane)
            }

            $(#[target_feature(enable = $feature)])*
            fn store_value(kv_type: KvType, value: &[f32], row: &mut [u8]) {
                store_one_value($token, kv_type, value, row)
            }

            $(#[target_feature(enable = $feature)])*
            fn norm(x: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
                rowwise::norm($token, x, norm, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn add_norm(x: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
                rowwise::add_norm($token, x, norm, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn norm_in_place(x: &mut [f32], norm: &RowNorm<'_>) {
                rowwise::norm_in_place($token, x, norm)
            }

            $(#[target_feature(enable = $feature)])*
            fn activate(activation: Activation, gate: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
                rowwise::activate($token, activation, gate, up, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn sigmoid_mul(gate: &[f32], x: &mut [f32]) {
                rowwise::sigmoid_mul($token, gate, x)
            }

            $(#[target_feature(enable = $feature)])*
            fn l2_norm_in_place(x: &mut [f32], eps: f32, scale: f32) {
                rowwise::l2_norm_in_place($token, x, eps, scale)
            }

            $(#[target_feature(enable = $feature)])*
            fn conv_silu(history: &mut [f32], weights: (&[f32], &[f32]), x: &mut [f32]) {
                recurrent::conv_silu($token, history, weights, x)
            }

            $(#[target_feature(enable = $feature)])*
            fn delta_step(state: &mut [f32], token: &DeltaToken<'_>, v: &mut [f32]) {
                delta::delta_step($token, state, token, v)
            }

            $(#[target_feature(enable = $feature)])*
            fn delta_chunk(state: &mut [f32], tokens: &[DeltaToken<'_>; DELTA_CHUNK], v: &mut [f32]) {
                delta_chunk::delta_chunk($token, state, tokens, v)
            }

            $(#[target_feature(enable = $feature)])*
            fn ssm_step(state: &mut [f32], (b, c): (&[f32], &[f32]), x: &mut [f32], rates: SsmRates) {
                ssm::ssm_step($token, state, (b, c), x, rates)
            }

            $(#[target_feature(enable = $feature)])*
            fn ssm_step_by_channel(
                (state, a): (&mut [f32], &[f32]),
                (b, c): (&[f32], &[f32]),
                x: &mut [f32],
                (dt, d): (&[f32], &[f32]),
            ) {
                ssm::ssm_step_by_channel($token, (state, a), (b, c), x, (dt, d))
            }

            $(#[target_feature(enable = $feature)])*
            fn rope_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) {
                rowwise::rope_halves($token, x, cos, sin)
            }

            $(#[target_feature(enable = $feature)])*
            fn rope_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) {
                rowwise::rope_pairs(x, cos, sin)
            }

            #[cfg(feature = "bench")]
            pub mod peaks {
                use super::*;

                $(#[target_feature(enable = $feature)])*
                fn dots(rounds: usize) -> u64 {
                    peak::dots::<_, false>($token, rounds)
                }

                $(#[target_feature(enable = $feature)])*
                fn pair_dots(rounds: usize) -> u64 {
                    peak::dots::<_, true>($token, rounds)
                }

                $(#[target_feature(enable = $feature)])*
                fn fmas(rounds: usize) -> u64 {
                    peak::fmas($token, rounds)
                }

                $(#[target_feature(enable = $feature)])*
                fn read(data: &[u8], way: ReadWay) -> u64 {
                    peak::read($token, data, way)
                }

                pub const PEAKS: Peaks = Peaks {
                    dots,
                    dot_macs: peak::dot_macs::<$simd, false>,
                    pair_dots,
                    pair_macs: peak::dot_macs::<$simd, true>,
                    fmas,
                    fma_macs: peak::fma_macs::<$simd>,
                    bf16_dots: None,
                    bf16_macs: peak::bf16_macs::<$simd>,
                    read,
                };
            }

            pub static KERNELS: Kernels = $finish(TABLE).in_order();

            pub static ENTRY: TierEntry =
                TierEntry { tier: $tier, features: FEATURES, probe, gains: $gains, kernels: &KERNELS };

            pub const TABLE: Kernels = Kernels {
                tier: $tier,
                dedicated: [
                    f32s::KERNELS,
                    f16s::KERNELS,
                    bf16s::KERNELS,
                    q8_0::KERNELS,
                    q4_0::KERNELS,
                    q4k::KERNELS,
                    q6k::KERNELS,
                ],
                unpack: UNPACK,
                products: [
                    (ProductKind::Groups32, groups32),
                    (ProductKind::Groups32Mins, groups32_mins),
                    (ProductKind::Groups16, groups16),
                    (ProductKind::Super32, super32),
                    (ProductKind::Super32Mins, super32_mins),
                    (ProductKind::Super16, super16),
                    (ProductKind::Super16Mins, super16_mins),
                    (ProductKind::Groups32Bytes, groups32_bytes),
                    (ProductKind::Super32Seven, super32_seven),
                    (ProductKind::Super32Bytes, super32_bytes),
                    (ProductKind::Super16Seven, super16_seven),
                ],
                repack,
                quantise,
                quantise_block,
                attend,
                attend_latent,
                absorb,
                store_key,
                store_value,
                norm,
                add_norm,
                norm_in_place,
                activate,
                sigmoid_mul,
                l2_norm_in_place,
                conv_silu,
                delta_step,
                delta_chunk: if <$simd as Simd>::FAST { Some(delta_chunk) } else { None },
                ssm_step,
                ssm_step_by_channel,
                rope_halves,
                rope_pairs,
                #[cfg(feature = "bench")]
                peaks: peaks::PEAKS,
                stripe_rows: STRIPE_ROWS,
                activations_of_16_bits: if <$simd as Simd>::FAST { ActivationFormat::I16 } else { ActivationFormat::F32 },
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use {tier, unpack};

/// A tier whose kernels are all its own.
pub(super) const fn finished(table: Kernels) -> Kernels {
    table
}

/// A tier that no weaker one is better than.
pub(super) fn always() -> bool {
    true
}

tier!(scalar, Tier::Scalar, Scalar, Scalar, [], always, finished, V = 2, N = 1, NS = 1, NF = 1, NH = 1);
