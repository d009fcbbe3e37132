//! The ceilings of this box that others are judged by: arithmetic, and reading memory.

use std::fmt;
use std::time::Instant;

use serde_json::{Value, json};

use super::figures::Spread;
use crate::kernels::{Kernels, ReadWay, Team, Tier};
use crate::quant::WeightType;

/// Bytes of matrices that are read in turn: beyond any cache this product meets but the largest servers'.
pub const STREAMED_BYTES: usize = 512 << 20;

/// Runs `work` on every worker and returns the seconds until the last was done.
fn timed(team: &dyn Team, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let begun = Instant::now();
    team.run(work);
    begun.elapsed().as_secs_f64()
}

/// Peaks of the arithmetic, one figure a round, in GMAC/s of all workers.
#[derive(Default)]
pub struct PeakRounds {
    int8: Vec<f64>,
    int16: Vec<f64>,
    f32: Vec<f64>,
    bf16: Vec<f64>,
}

/// Peaks of the arithmetic in GMAC/s.
pub struct Peaks {
    pub int8: Spread,
    pub int16: Spread,
    pub f32: Spread,
    /// Where the tier has bf16 dot products.
    pub bf16: Option<Spread>,
}

impl PeakRounds {
    pub fn measure(&mut self, kernels: &Kernels, team: &dyn Team) {
        self.int8.push(peak(team, &|rounds| kernels.peak_int8(rounds)));
        self.int16.push(peak(team, &|rounds| kernels.peak_int16(rounds)));
        self.f32.push(peak(team, &|rounds| kernels.peak_f32(rounds)));
        if kernels.peak_bf16(1).is_some() {
            self.bf16.push(peak(team, &|rounds| kernels.peak_bf16(rounds).unwrap_or_default()));
        }
    }

    pub fn extend(&mut self, other: &PeakRounds) {
        self.int8.extend(&other.int8);
        self.int16.extend(&other.int16);
        self.f32.extend(&other.f32);
        self.bf16.extend(&other.bf16);
    }

    pub fn spread(&self) -> Peaks {
        Peaks {
            int8: Spread::of(&self.int8),
            int16: Spread::of(&self.int16),
            f32: Spread::of(&self.f32),
            bf16: (!self.bf16.is_empty()).then(|| Spread::of(&self.bf16)),
        }
    }
}

impl Peaks {
    /// What weights of this type are judged by: for floats of 16 bits the best of what can multiply them, whichever the
    /// kernel uses.
    pub fn of(&self, ty: WeightType) -> f64 {
        match ty {
            WeightType::F32 => self.f32.median,
            WeightType::F16 | WeightType::BF16 => {
                self.bf16.map_or(0.0, |bf16| bf16.median).max(self.int16.median).max(self.f32.median)
            }
            _ => self.int8.median,
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "int8_gmacs": self.int8.json(), "int16_gmacs": self.int16.json(), "bf16_gmacs": self.bf16.map(Spread::json),
            "f32_gmacs": self.f32.json(),
        })
    }
}

impl fmt::Display for Peaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "int8 {:.0}, int16 {:.0}, ", self.int8, self.int16)?;
        if let Some(bf16) = self.bf16 {
            write!(f, "bf16 {bf16:.0}, ")?;
        }
        write!(f, "f32 {:.0} GMAC/s", self.f32)
    }
}

/// GMAC/s of all workers in a loop of nothing but `peak`: the best of some tries of some milliseconds, for a ceiling that
/// a neighbour pressed down would flatter what is judged by it.
fn peak(team: &dyn Team, peak: &(dyn Fn(usize) -> (u64, u64) + Sync)) -> f64 {
    const SECONDS: f64 = 0.005;
    const TRIES: usize = 3;
    const SAMPLE: usize = 2000;
    let begun = Instant::now();
    let (_, macs) = std::hint::black_box(peak(SAMPLE));
    let rounds = (SECONDS / begun.elapsed().as_secs_f64().max(1e-9) * SAMPLE as f64) as usize + 1;
    let one = |_| {
        timed(team, &|_| {
            std::hint::black_box(peak(rounds));
        })
    };
    let seconds = (0..TRIES).map(one).fold(f64::INFINITY, f64::min);
    (macs / SAMPLE as u64 * rounds as u64 * team.size() as u64) as f64 / 1e9 / seconds
}

/// Read bandwidth by every way of reading, one figure a round, in GB/s.
pub struct ReadRounds(pub Vec<(ReadBy, Vec<f64>)>);

/// A way of reading, with vectors of some tier.
#[derive(Clone, Copy)]
pub struct ReadBy(&'static Kernels, ReadWay);

impl fmt::Display for ReadBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0.tier().name(), self.1.name())
    }
}

impl ReadRounds {
    /// With the vectors of the chosen tier, and with 32 bytes, which can be faster than 64.
    pub fn new(kernels: &'static Kernels) -> ReadRounds {
        let narrow = Tier::Avx2.kernels().filter(|narrow| narrow.tier() < kernels.tier());
        let ways = [Some(kernels), narrow].into_iter().flatten();
        ReadRounds(ways.flat_map(|k| ReadWay::ALL.map(|way| (ReadBy(k, way), Vec::new()))).collect())
    }

    /// The first `threads` workers read `data` once, each its own stretch.
    pub fn measure(&mut self, team: &dyn Team, threads: usize, data: &[u8]) {
        let each = data.len() / threads;
        for (ReadBy(kernels, way), figures) in &mut self.0 {
            let seconds = timed(team, &|worker| {
                if worker < threads {
                    std::hint::black_box(kernels.read(&data[worker * each..][..each], *way));
                }
            });
            figures.push((each * threads) as f64 / 1e9 / seconds);
        }
    }

    /// The way that was best.
    pub fn best(&self) -> (ReadBy, Spread) {
        let spreads = self.0.iter().map(|(by, figures)| (*by, Spread::of(figures)));
        spreads.max_by(|(_, a), (_, b)| a.median.total_cmp(&b.median)).expect("there are ways")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_way_is_by_median() {
        let scalar = Tier::Scalar.kernels().unwrap();
        let figures = [vec![1.0, 9.0, 1.0], vec![2.0, 2.0, 2.0], vec![1.5; 3], vec![1.0; 3]];
        let ways = ReadWay::ALL.into_iter().map(|way| ReadBy(scalar, way));
        let (by, spread) = ReadRounds(ways.zip(figures).collect()).best();
        assert_eq!((by.to_string(), spread.median), ("scalar ahead".to_owned(), 2.0));
    }
}
