//! Rotary position embedding (arXiv:2104.09864) and the ways to stretch it beyond the context a model was trained for.
//!
//! Pair `i` of a head at position `p` is turned by `p * frequency_i`; cosine and sine are multiplied by a magnitude. With
//! `f_i = base^(-2i / dim) / factor_i`:
//!
//! | scaling | frequency | magnitude |
//! |---|---|---|
//! | none, Llama 3 (`rope_freqs`), LongRoPE (`rope_factors_short`, `_long`) | `f_i` | `attn_factor` |
//! | linear by `s` | `f_i / s` | `attn_factor` |
//! | YaRN by `s` (arXiv:2309.00071) | between `f_i / s` and `f_i` | `attn_factor * (1 + 0.1 ln s)`, divided by `1 + 0.1 m ln s` with `yarn_log_multiplier` `m` |

use super::error::{Fault, ModelError, range};
use crate::gguf::Metadata;

/// How the heads of some layers are rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// How many values of a head are rotated.
    pub dim: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// Frequencies are divided by this, with YaRN those of slow pairs.
    pub scale: f32,
    /// Fast pairs are left as they are, if set.
    pub yarn: Option<Yarn>,
    /// Cosines and sines are multiplied by this.
    pub magnitude: f32,
    /// Whether pairs are divided into sections by what position they follow (time, height, width): for text all are the same.
    pub has_sections: bool,
    /// Context length before scaling; beyond it LongRoPE takes its other factors.
    pub ctx_original: usize,
}

/// Which pairs YaRN leaves as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// How much of it is applied, mostly 1.
    pub ext_factor: f32,
    /// Pairs that turn more often than this over the original context keep their frequency.
    pub beta_fast: f32,
    /// Pairs that turn less often are scaled entirely.
    pub beta_slow: f32,
}

impl Rope {
    /// Reads the rotation of architecture `arch`, whose heads have `head_dim` values.
    ///
    /// # Errors
    /// A number out of its range, or a kind of scaling that is not there.
    pub(super) fn from_metadata(
        meta: &Metadata<'_>,
        arch: &str,
        head_dim: usize,
        ctx_train: usize,
    ) -> Result<Rope, ModelError> {
        let key = |suffix: &str| format!("{arch}.rope.{suffix}");
        let unsupported =
            |suffix: &str, value: String| ModelError::from(Fault::Unsupported { key: key(suffix), value });
        let number = |suffix: &str, default: f32| -> Result<f32, ModelError> {
            match meta.f32(&key(suffix))? {
                None => Ok(default),
                Some(found) if found.is_finite() && found >= 0.0 => Ok(found),
                Some(found) => Err(unsupported(suffix, found.to_string())),
            }
        };
        let dim = meta.u32(&key("dimension_count"))?.map_or(head_dim, |dim| dim as usize);
        if dim > head_dim || !dim.is_multiple_of(2) || dim == 0 {
            return range(
                "rope.dimension_count",
                dim,
                format!("an even number from 2 to the size of a head, {head_dim}"),
            );
        }
        // Positions of images: text has the same in the first three sections, and zeros in the fourth.
        let sections: Vec<i32> = meta.i32s(&key("dimension_sections"))?.into_iter().flat_map(|n| n.iter()).collect();
        if sections.get(3).is_some_and(|&n| n != 0) {
            return Err(unsupported("dimension_sections", format!("{sections:?}")));
        }
        let has_sections = sections.len() >= 2 && sections[..2].iter().all(|&n| n > 0);
        let base = number("freq_base", 10_000.0)?;
        if base <= 1.0 {
            return Err(unsupported("freq_base", base.to_string()));
        }
        let scale = match number("scaling.factor", number("scale_linear", 0.0)?)? {
            0.0 => 1.0,
            scale => scale,
        };
        let attn_factor = number("scaling.attn_factor", 1.0)?;
        // 0 is none (llama.cpp's `llama_context`).
        let ctx_original = meta.u32(&key("scaling.original_context_length"))?.filter(|&n| n > 0);
        let ctx_original = ctx_original.map_or(ctx_train, |n| n as usize);
        let plain = Rope { dim, base, scale, yarn: None, magnitude: attn_factor, has_sections, ctx_original };
        match meta.str(&key("scaling.type"))? {
            Some("none") => Ok(Rope { scale: 1.0, ..plain }),
            None | Some("linear" | "longrope") => Ok(plain),
            Some("yarn") => {
                let yarn = Yarn {
                    ext_factor: number("scaling.yarn_ext_factor", 1.0)?,
                    beta_fast: number("scaling.yarn_beta_fast", 32.0)?,
                    beta_slow: number("scaling.yarn_beta_slow", 1.0)?,
                };
                // The paper's recommendation, unless the model was trained with another; DeepSeek's is a ratio of two.
                let usual = match number("scaling.yarn_log_multiplier", 0.0)? {
                    0.0 => plain.length(1.0),
                    strength => plain.length(1.0) / plain.length(strength),
                };
                let magnitude = attn_factor * number("scaling.yarn_attn_factor", usual)?;
                Ok(Rope { yarn: Some(yarn).filter(|yarn| yarn.ext_factor > 0.0), magnitude, ..plain })
            }
            Some(other) => Err(unsupported("scaling.type", other.chars().take(64).collect())),
        }
    }

    /// What YaRN recommends to multiply cosines and sines by, with this strength.
    pub(super) fn length(&self, strength: f32) -> f32 {
        1.0 + 0.1 * strength * self.scale.max(1.0).ln()
    }

    /// The rotation without any scaling, on another base.
    pub(super) fn unscaled(&self, base: f32) -> Rope {
        Rope { base, scale: 1.0, yarn: None, magnitude: 1.0, ..self.clone() }
    }

    /// The rotation of layers that see little, on another base: contexts are not stretched there, but what the file multiplies
    /// cosines and sines by stands (llama.cpp's `get_rope_freq_scale`).
    pub(super) fn unstretched(&self, base: f32) -> Rope {
        let of_yarn = if self.yarn.is_some() { self.length(1.0) } else { 1.0 };
        Rope { magnitude: self.magnitude / of_yarn, ..self.unscaled(base) }
    }

    /// Fills the table of frequencies, `[dim / 2]`; `factors` are divisors of them.
    pub fn frequencies(&self, factors: Option<&[f32]>, out: &mut [f64]) {
        let (dim, base, scale) = (self.dim as f64, f64::from(self.base), f64::from(self.scale));
        // The pair that turns so often over the original context.
        let pair = |turns: f32| {
            dim * (self.ctx_original as f64 / (f64::from(turns) * std::f64::consts::TAU)).ln() / (2.0 * base.ln())
        };
        for (i, frequency) in out.iter_mut().enumerate() {
            let factor = factors.map_or(1.0, |factors| f64::from(factors[i]));
            let own = base.powf(-2.0 * i as f64 / dim) / factor;
            let kept = self.yarn.map_or(0.0, |yarn| {
                let first = pair(yarn.beta_fast).floor().max(0.0);
                let last = pair(yarn.beta_slow).ceil().min(dim - 1.0);
                let ramp = ((i as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
                (1.0 - ramp) * f64::from(yarn.ext_factor)
            });
            *frequency = own / scale * (1.0 - kept) + own * kept;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Rope = Rope {
        dim: 64,
        base: 150_000.0,
        scale: 1.0,
        yarn: None,
        magnitude: 1.0,
        has_sections: false,
        ctx_original: 4096,
    };

    fn table(rope: &Rope, factors: Option<&[f32]>) -> Vec<f64> {
        let mut out = vec![f64::NAN; rope.dim / 2];
        rope.frequencies(factors, &mut out);
        out
    }

    #[test]
    fn scaling_divides_and_yarn_leaves_fast_pairs_alone() {
        let plain = table(&PLAIN, None);
        assert_eq!((plain[0], plain.len()), (1.0, 32));
        assert!((plain[16] - 1.0 / 150_000f64.sqrt()).abs() < 1e-15);
        let linear = table(&Rope { scale: 4.0, ..PLAIN }, None);
        assert!(linear.iter().zip(&plain).all(|(a, b)| a * 4.0 == *b));
        let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32).collect();
        assert!((table(&PLAIN, Some(&factors))[31] * 32.0 - plain[31]).abs() < 1e-18);
        // gpt-oss: 64 ln(4096 / (32 * 2 pi)) / (2 ln 150000) = 8.09 and 64 ln(4096 / 2 pi) / (2 ln 150000) = 17.4.
        let yarn = Yarn { ext_factor: 1.0, beta_fast: 32.0, beta_slow: 1.0 };
        let yarn = table(&Rope { scale: 32.0, yarn: Some(yarn), ..PLAIN }, None);
        for i in 0..32 {
            let scaled = ((i as f64 - 8.0) / 10.0).clamp(0.0, 1.0);
            let want = plain[i] * (1.0 - scaled + scaled / 32.0);
            assert!((yarn[i] - want).abs() <= 1e-12 * want, "pair {i}: {} {want}", yarn[i]);
        }
    }
}
