//! The kernels compiled: every function once per tier, with its features, and the tables that [`Kernels`] calls through.

use super::*;

/// Aligns the frame of the function that it is inlined into, to where vectors do not cross cache lines. The compiler keeps those
/// in the frame that it has no registers for, and must know before it counts them that the frame can be aligned: it does where
/// there is a variable that needs it. (Zen 4, six registers kept, frame off by 16: 20 % slower.)
#[inline(always)]
fn align_frame() {
    #[repr(align(64))]
    struct Line(#[allow(dead_code, reason = "bytes to be aligned")] [u8; 64]);
    let mut line = Line([0; 64]);
    std::hint::black_box(&mut line);
}

/// How a type is unpacked, compiled for the features of a tier.
macro_rules! unpack {
    ([$($feature:literal),*], $simd:ty, $token:expr, $format:ident) => {{
        $(#[target_feature(enable = $feature)])*
        fn fill(blocks: &[u8], tile: &mut scaled::Tile<'_>, ahead: Ahead) {
            scaled::fill::<_, scaled_formats::$format>($token, blocks, tile, ahead);
        }
        $(#[target_feature(enable = $feature)])*
        fn stream(panel: &[u8], rows: &Rows<'_>, ahead: Ahead, out: &mut [f32; PANEL_ROWS]) {
            align_frame();
            scaled::stream::<_, scaled_formats::$format>($token, panel, rows, ahead, out);
        }
        Unpack::new::<$simd, scaled_formats::$format>(fill, stream)
    }};
}

/// Emits one tier: the probe, the entry points with the very same feature list, and the table. `V` vectors of rows and
/// `N` tokens are the register block of integer prefill, `NS` tokens where scales are integers (their sums take three
/// registers where the others take two), `NF` tokens that of f32 prefill, `NH` that of 16-bit floats. The table goes
/// through `$finish`, where it may take kernels of another tier.
macro_rules! tier {
    ($module:ident, $tier:expr, $simd:ty, $token:expr, [$($feature:tt),*], $finish:expr, V = $v:literal, N = $n:literal, NS = $ns:literal, NF = $nf:literal, NH = $nh:literal) => {
        pub(super) mod $module {
            use super::acts::{quantise as quantise_row, quantise_block as quantise_one};
            use super::attention::{attend as attend_rows, store_key as store_one_key, store_value as store_one_value};
            use super::formats::*;
            use super::matmul::{float, int, int16, scaled};
            use super::{repack as repack_rows, rows, *};

            /// The CPU features of the tier.
            #[allow(dead_code, reason = "the scalar tier needs none")]
            pub const FEATURES: &str = concat!("", $($feature, " "),*);

            /// Whether this CPU has them all.
            #[allow(dead_code, reason = "the scalar tier needs no probe")]
            pub fn probe() -> bool {
                true $(&& std::arch::is_x86_feature_detected!($feature))*
            }

            const STRIPE_ROWS: usize = $v * <$simd as super::simd::Simd>::LANES;

            macro_rules! stream {
                ($name:ident, $kind:ident, $format:ty) => {
                    $(#[target_feature(enable = $feature)])*
                    fn $name(w: &Matrix<'_>, acts: &Acts<'_>, out: &mut Block<'_, f32>, accumulate: bool, ahead: Ahead) {
                        align_frame();
                        $kind::stream::<_, $format>($token, w, acts, out, accumulate, ahead);
                    }
                };
            }
            stream!(stream_f32, float, F32);
            stream!(stream_f16, float, F16);
            stream!(stream_bf16, float, Bf16);
            stream!(stream_q8_0, int, Q8_0);
            stream!(stream_q4_0, int, Q4_0);
            stream!(stream_q4k, int, Q4K);
            stream!(stream_q6k, int, Q6K);

            macro_rules! tiled {
                ($name:ident, $few:ident, $kind:ident, $format:ty, $tokens:literal) => {
                    $(#[target_feature(enable = $feature)])*
                    fn $name(
                        w: &Matrix<'_>,
                        acts: &Acts<'_>,
                        out: &mut Block<'_, f32>,
                        accumulate: bool,
                        tile: (&mut [u8], usize),
                    ) {
                        if !<$simd as super::simd::Simd>::FAST {
                            return $few(w, acts, out, accumulate, Ahead::NONE);
                        }
                        align_frame();
                        let (scratch, k_cols) = tile;
                        let (whole, cols) = (out.cols / STRIPE_ROWS * STRIPE_ROWS, out.cols);
                        let tile = (&mut *scratch, k_cols);
                        $kind::tiled::<_, $format, $v, $tokens>($token, w, acts, (&mut *out, 0..whole), accumulate, tile);
                        if STRIPE_ROWS > PANEL_ROWS && whole < cols {
                            // The one panel that is left of an odd number of them.
                            const V: usize = PANEL_ROWS / <$simd as super::simd::Simd>::LANES;
                            let tile = (scratch, k_cols);
                            $kind::tiled::<_, $format, V, $tokens>($token, w, acts, (out, whole..cols), accumulate, tile);
                        }
                    }
                };
            }
            tiled!(tiled_f32, stream_f32, float, F32, $nf);
            tiled!(tiled_f16, stream_f16, int16, F16, $nh);
            tiled!(tiled_bf16, stream_bf16, int16, Bf16, $nh);
            tiled!(tiled_q8_0, stream_q8_0, int, Q8_0, $n);
            tiled!(tiled_q4_0, stream_q4_0, int, Q4_0, $n);
            tiled!(tiled_q4k, stream_q4k, int, Q4K, $ns);
            tiled!(tiled_q6k, stream_q6k, int, Q6K, $ns);

            const UNPACK: [Unpack; WeightType::ALL.len() - OWN_TYPES] = [
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

            macro_rules! scaled {
                ($name:ident, $kind:ident) => {
                    $(#[target_feature(enable = $feature)])*
                    fn $name(
                        w: (&Matrix<'_>, &Unpack),
                        acts: &Acts<'_>,
                        out: &mut Block<'_, f32>,
                        accumulate: bool,
                        (scratch, k_cols, ahead): (&mut [u8], usize, Ahead),
                    ) {
                        const V: usize = PANEL_ROWS / <$simd as super::simd::Simd>::LANES;
                        const KIND: usize = Kind::$kind.on::<$simd>() as usize;
                        const N: usize = Kind::$kind.tokens::<$simd>($n);
                        align_frame();
                        let (cols, few) = (out.cols, acts.n_tokens <= STREAM_TOKENS_MAX);
                        let mut next = 0;
                        if STRIPE_ROWS > PANEL_ROWS && !few {
                            next = cols / STRIPE_ROWS * STRIPE_ROWS;
                            let tile = (&mut *scratch, k_cols, Ahead::NONE);
                            scaled::product::<_, KIND, $v, N>($token, w, acts, (&mut *out, 0..next), accumulate, tile);
                        }
                        // One panel after the other, so that few tokens read them front to back.
                        let (step, ahead) = if few { (PANEL_ROWS, ahead) } else { (cols, Ahead::NONE) };
                        while next < cols {
                            let (tile, part) = ((&mut *scratch, k_cols, ahead), next..cols.min(next + step));
                            next = part.end;
                            scaled::product::<_, KIND, V, N>($token, w, acts, (&mut *out, part), accumulate, tile);
                        }
                    }
                };
            }
            scaled!(groups32, Groups32);
            scaled!(groups32_mins, Groups32Mins);
            scaled!(groups16, Groups16);
            scaled!(super32, Super32);
            scaled!(super32_mins, Super32Mins);
            scaled!(super16, Super16);
            scaled!(super16_mins, Super16Mins);
            scaled!(groups32_bytes, Groups32Bytes);
            scaled!(super32_seven, Super32Seven);
            scaled!(super32_bytes, Super32Bytes);
            scaled!(super16_seven, Super16Seven);

            $(#[target_feature(enable = $feature)])*
            fn repack(ty: WeightType, rows: (&[u8], &[u8]), cols: usize, panel: &mut [u8]) {
                repack_rows::panel($token, ty, rows, cols, panel)
            }

            $(#[target_feature(enable = $feature)])*
            fn quantise(layout: ActLayout, kind: ActType, record: &mut [u8]) {
                quantise_row($token, layout, kind, record)
            }

            $(#[target_feature(enable = $feature)])*
            fn quantise_block(kind: ActType, values: &[f32], block: &mut [u8]) {
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
            fn store_key(kv_type: KvType, key: &[f32], panel: &mut [u8], lane: usize) {
                store_one_key($token, kv_type, key, panel, lane)
            }

            $(#[target_feature(enable = $feature)])*
            fn store_value(kv_type: KvType, value: &[f32], row: &mut [u8]) {
                store_one_value($token, kv_type, value, row)
            }

            $(#[target_feature(enable = $feature)])*
            fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                rows::rms_norm($token, x, weight, eps, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn add_rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                rows::add_rms_norm($token, x, weight, eps, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
                rows::rms_norm_in_place($token, x, weight, eps)
            }

            $(#[target_feature(enable = $feature)])*
            fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
                rows::silu_mul($token, gate, up, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
                rows::gelu_mul($token, gate, up, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn swiglu_clamped(gate: &[f32], up: &[f32], out: &mut [f32]) {
                rows::swiglu_clamped($token, gate, up, out)
            }

            $(#[target_feature(enable = $feature)])*
            fn rope_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) {
                rows::rope_halves($token, x, cos, sin)
            }

            $(#[target_feature(enable = $feature)])*
            fn rope_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) {
                rows::rope_pairs(x, cos, sin)
            }

            $(#[target_feature(enable = $feature)])*
            fn dots(rounds: usize) -> u64 {
                super::ceiling::dots::<_, false>($token, rounds)
            }

            $(#[target_feature(enable = $feature)])*
            fn pair_dots(rounds: usize) -> u64 {
                super::ceiling::dots::<_, true>($token, rounds)
            }

            $(#[target_feature(enable = $feature)])*
            fn fmas(rounds: usize) -> u64 {
                super::ceiling::fmas($token, rounds)
            }

            $(#[target_feature(enable = $feature)])*
            fn read(data: &[u8], way: ReadWay) -> u64 {
                super::ceiling::read($token, data, way)
            }

            pub static KERNELS: Kernels = $finish(TABLE);

            pub const TABLE: Kernels = Kernels {
                tier: $tier,
                stream: [stream_f32, stream_f16, stream_bf16, stream_q8_0, stream_q4_0, stream_q4k, stream_q6k],
                tiled: [tiled_f32, tiled_f16, tiled_bf16, tiled_q8_0, tiled_q4_0, tiled_q4k, tiled_q6k],
                unpack: UNPACK,
                scaled: [
                    groups32,
                    groups32_mins,
                    groups16,
                    super32,
                    super32_mins,
                    super16,
                    super16_mins,
                    groups32_bytes,
                    super32_seven,
                    super32_bytes,
                    super16_seven,
                ],
                repack,
                quantise,
                quantise_block,
                attend,
                store_key,
                store_value,
                rms_norm,
                add_rms_norm,
                rms_norm_in_place,
                silu_mul,
                gelu_mul,
                swiglu_clamped,
                rope_halves,
                rope_pairs,
                dots,
                dot_macs: super::ceiling::dot_macs::<$simd, false>,
                pair_dots,
                pair_macs: super::ceiling::dot_macs::<$simd, true>,
                fmas,
                fma_macs: super::ceiling::fma_macs::<$simd>,
                bf16_dots: None,
                bf16_macs: super::ceiling::bf16_macs::<$simd>,
                read,
                stripe_rows: STRIPE_ROWS,
                acts_of_16_bits: if <$simd as super::simd::Simd>::FAST { ActType::I16 } else { ActType::F32 },
            };
        }
    };
}

/// A tier whose kernels are all its own.
const fn finished(table: Kernels) -> Kernels {
    table
}

/// The kernels of avx2 wherever integers are not multiplied: the two differ in nothing else.
#[cfg(target_arch = "x86_64")]
const fn with_floats_of_avx2(table: Kernels) -> Kernels {
    const BASE: Kernels = avx2::TABLE;
    let [f32s, f16s, bf16s, ..] = BASE.stream;
    let [.., q8_0, q4_0, q4k, q6k] = table.stream;
    let stream = [f32s, f16s, bf16s, q8_0, q4_0, q4k, q6k];
    let mut tiled = table.tiled;
    tiled[WeightType::F32 as usize] = BASE.tiled[WeightType::F32 as usize];
    let Kernels { tier, unpack, scaled, quantise, quantise_block, .. } = table;
    let Kernels { attend, dots, dot_macs, pair_dots, pair_macs, .. } = table;
    Kernels {
        tier,
        stream,
        tiled,
        unpack,
        scaled,
        quantise,
        quantise_block,
        attend,
        dots,
        dot_macs,
        pair_dots,
        pair_macs,
        ..BASE
    }
}

tier!(scalar, Tier::Scalar, portable::Portable, portable::Portable, [], finished, V = 1, N = 2, NS = 2, NF = 2, NH = 2);

#[cfg(target_arch = "x86_64")]
tier!(
    avx2,
    Tier::Avx2,
    x86_64::avx2::Avx2<false>,
    // SAFETY: the enclosing function carries the tier's feature list, so it runs only where the probe succeeded.
    unsafe { x86_64::avx2::Avx2::<false>::assume() },
    ["avx2", "fma", "f16c"],
    finished,
    V = 2,
    N = 3,
    NS = 2,
    NF = 6,
    NH = 4
);

#[cfg(target_arch = "x86_64")]
tier!(
    avx2vnni,
    Tier::Avx2Vnni,
    x86_64::avx2::Avx2<true>,
    // SAFETY: as above.
    unsafe { x86_64::avx2::Avx2::<true>::assume() },
    ["avx2", "fma", "f16c", "avxvnni"],
    with_floats_of_avx2,
    V = 2,
    N = 5,
    NS = 2,
    NF = 6,
    NH = 5
);

#[cfg(target_arch = "x86_64")]
tier!(
    avx512,
    Tier::Avx512,
    x86_64::avx512::Avx512<false>,
    // SAFETY: as above.
    unsafe { x86_64::avx512::Avx512::<false>::assume() },
    ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx2", "fma", "f16c"],
    finished,
    V = 2,
    N = 4,
    NS = 4,
    NF = 12,
    NH = 6
);

/// The avx512 tier with look-ups of bytes in large tables, and of CPUs that have bf16 dot products.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512bf16 {
    use super::matmul::scaled;
    use super::*;

    pub const FEATURES: &str = "avx512f avx512bw avx512dq avx512vl avx512vnni avx512bf16 avx512vbmi avx2 fma f16c ";

    pub fn probe() -> bool {
        let detected =
            (std::arch::is_x86_feature_detected!("avx512bf16"), std::arch::is_x86_feature_detected!("avx512vbmi"));
        avx512::probe() && detected == (true, true)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c")]
    fn bf16_dots(rounds: usize) -> u64 {
        // SAFETY: this function carries the tier's feature list, so it runs only where the probe succeeded.
        super::ceiling::bf16_dots(unsafe { x86_64::avx512::Avx512::<true>::assume() }, rounds)
    }

    /// [`unpack`] for this tier.
    macro_rules! grid {
        ($format:ident) => {
            unpack!(
                ["avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi,avx2,fma,f16c"],
                x86_64::avx512::Avx512<true>,
                // SAFETY: as above.
                unsafe { x86_64::avx512::Avx512::<true>::assume() },
                $format
            )
        };
    }

    pub static KERNELS: Kernels = {
        let mut table = avx512::TABLE;
        table.unpack[WeightType::Iq2Xxs as usize - OWN_TYPES] = grid!(Iq2Xxs);
        table.unpack[WeightType::Iq2Xs as usize - OWN_TYPES] = grid!(Iq2Xs);
        table.unpack[WeightType::Iq2S as usize - OWN_TYPES] = grid!(Iq2S);
        table.unpack[WeightType::Iq3Xxs as usize - OWN_TYPES] = grid!(Iq3Xxs);
        table.unpack[WeightType::Iq3S as usize - OWN_TYPES] = grid!(Iq3S);
        table.bf16_dots = Some(bf16_dots);
        table.tier = Tier::Avx512Bf16;
        table
    };
}
