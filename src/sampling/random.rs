//! PCG32 (XSH RR 64/32; M. E. O'Neill, HMC-CS-2014-0905).

/// A generator with 64 bits of state.
#[derive(Clone, Debug)]
pub(super) struct Pcg32 {
    state: u64,
}

const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
/// The stream of the reference program, `54 << 1 | 1`.
const INCREMENT: u64 = 109;

impl Pcg32 {
    pub(super) fn new(seed: u64) -> Pcg32 {
        let mut random = Pcg32 { state: 0 };
        random.next();
        random.state = random.state.wrapping_add(seed);
        random.next();
        random
    }

    pub(super) fn next(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
        ((((old >> 18) ^ old) >> 27) as u32).rotate_right((old >> 59) as u32)
    }

    /// Uniform in [0, 1), 53 bits.
    pub(super) fn unit(&mut self) -> f64 {
        let bits = u64::from(self.next()) << 21 ^ u64::from(self.next()) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_the_reference_program() {
        // pcg32-demo, seed 42, stream 54, round 1.
        let mut random = Pcg32::new(42);
        let got: Vec<u32> = (0..6).map(|_| random.next()).collect();
        assert_eq!(got, [0xa15c_02b7, 0x7b47_f409, 0xba1d_3330, 0x83d2_f293, 0xbfa4_784b, 0xcbed_606e]);
    }
}
