//! The tiers of kernels, which of them this CPU has, and the choice.

use std::fmt;

use super::Kernels;
use super::tables::scalar;
#[cfg(target_arch = "x86_64")]
use super::tables::{avx2, avx2vnni, avx512, avx512bf16};
#[cfg(target_arch = "x86_64")]
use super::x86_64;
use crate::error::{Error, Exit};

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
    /// The same with VBMI for the grids of IQ2 and IQ3, on CPUs that also have AVX-512 BF16 (Zen 4 and later).
    Avx512Bf16,
}

/// A tier this CPU does not have, or one that does not exist.
#[derive(Debug, PartialEq, Eq)]
pub enum TierError {
    /// No tier of that name.
    Unknown(String),
    /// The CPU lacks the tier.
    Missing {
        /// What was asked for.
        asked: Tier,
        /// The best there is.
        best: Tier,
    },
}

impl fmt::Display for TierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TierError::Unknown(name) => {
                let built: Vec<&str> = Tier::built().map(Tier::name).collect();
                write!(f, "no kernel tier `{name}`: use {}", built.join(", "))
            }
            TierError::Missing { asked, best } => write!(
                f,
                "this CPU lacks the kernel tier {}: it needs {}; the best here is {}: leave --isa out, or use --isa {}",
                asked.name(),
                asked.features(),
                best.name(),
                best.name()
            ),
        }
    }
}

impl std::error::Error for TierError {}

impl From<TierError> for Error {
    fn from(e: TierError) -> Self {
        let exit = match e {
            TierError::Unknown(_) => Exit::Usage,
            TierError::Missing { .. } => Exit::Cpu,
        };
        Error::new(exit, e)
    }
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

    /// The tiers this build has kernels of, weakest first.
    pub fn built() -> impl Iterator<Item = Tier> {
        Tier::ALL.into_iter().filter(|tier| match tier {
            Tier::Scalar => true,
            Tier::Avx2Vnni => cfg!(all(target_arch = "x86_64", feature = "avx2vnni")),
            Tier::Avx2 | Tier::Avx512 | Tier::Avx512Bf16 => cfg!(target_arch = "x86_64"),
        })
    }

    /// The CPU features it takes.
    pub fn features(self) -> &'static str {
        match self {
            Tier::Scalar => "nothing",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => avx2::FEATURES,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2Vnni if !HAS_AVX2VNNI => "a brim that was built with the feature avx2vnni",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2Vnni => avx2vnni::FEATURES,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => avx512::FEATURES,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Bf16 => avx512bf16::FEATURES,
            #[cfg(not(target_arch = "x86_64"))]
            _ => "an x86-64 CPU",
        }
    }

    /// The kernels of this tier, if this CPU can run them.
    pub fn kernels(self) -> Option<&'static Kernels> {
        match self {
            Tier::Scalar => Some(&scalar::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => avx2::probe().then_some(&avx2::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2Vnni if !HAS_AVX2VNNI => None,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2Vnni => avx2vnni::probe().then_some(&avx2vnni::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => avx512::probe().then_some(&avx512::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Bf16 => avx512bf16::probe().then_some(&avx512bf16::KERNELS),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }
}

impl std::str::FromStr for Tier {
    type Err = TierError;

    fn from_str(name: &str) -> Result<Self, TierError> {
        Tier::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| TierError::Unknown(name.to_owned()))
    }
}

/// The small runtime leaves this tier out; CPUs that would take it take `avx2`.
#[cfg(target_arch = "x86_64")]
const HAS_AVX2VNNI: bool = cfg!(feature = "avx2vnni");

/// The kernels of every tier this CPU has, weakest first.
pub fn available() -> impl Iterator<Item = &'static Kernels> {
    Tier::ALL.into_iter().filter_map(Tier::kernels)
}

/// Chooses the tier: the one asked for, or the best under `ceiling`.
///
/// # Errors
/// The tier asked for is not had by this CPU.
pub fn select(asked: Option<Tier>, ceiling: Option<Tier>) -> Result<&'static Kernels, TierError> {
    let gains = |k: &&Kernels| k.tier != Tier::Avx512Bf16 || bf16_dots_gain();
    let best = available().filter(gains).last().unwrap_or(&scalar::KERNELS);
    match asked {
        Some(asked) => asked.kernels().ok_or(TierError::Missing { asked, best: best.tier }),
        None => Ok(available().filter(gains).filter(|k| ceiling.is_none_or(|c| k.tier <= c)).last().unwrap_or(best)),
    }
}

/// Whether `vdpbf16ps` is faster than two f32 multiply-adds: twice as fast on AMD since Zen 4; on Intel, where AMX is
/// the bf16 unit, half as fast (1.7 against 6.7 thousand million a second were measured on one core of a Xeon).
fn bf16_dots_gain() -> bool {
    #[cfg(target_arch = "x86_64")]
    return x86_64::maker_and_family().0 == *b"AuthenticAMD";
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}
