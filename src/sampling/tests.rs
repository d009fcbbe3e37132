use super::*;

fn params() -> SamplingParams {
    SamplingParams { temp: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 7, ..SamplingParams::default() }
}

fn draws(params: SamplingParams, logits: &[f32], n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(params).unwrap();
    let mut scratch = vec![Candidate::default(); sampler.scratch_len(logits.len())];
    (0..n).map(|_| sampler.sample(&mut logits.to_vec(), &mut scratch).unwrap()).collect()
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    assert_eq!(draws(SamplingParams { temp: 0.0, ..params() }, &[1.0, 3.0, 3.0, -1.0], 2), [1, 1]);
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.0, 1.0, 2.0, -50.0];
    let n = 40_000;
    let got = draws(params(), &logits, n);
    let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    for (token, logit) in logits.iter().enumerate() {
        let p = f64::from(*logit).exp() / total;
        let share = got.iter().filter(|&&t| t as usize == token).count() as f64 / n as f64;
        // Five standard deviations of a binomial share.
        let bound = 5.0 * (p * (1.0 - p) / n as f64).sqrt() + 1e-9;
        assert!((share - p).abs() <= bound, "token {token}: {share} instead of {p}");
    }
}

#[test]
fn same_seed_same_tokens() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 20.0).collect();
    let one = draws(SamplingParams::default(), &logits, 50);
    assert_eq!(one, draws(SamplingParams::default(), &logits, 50));
    assert_ne!(one, draws(SamplingParams { seed: 1, ..SamplingParams::default() }, &logits, 50));
}

#[test]
fn truncation_keeps_what_it_says() {
    // Probabilities 0.4, 0.3, 0.2, 0.1 in scrambled order.
    let logits = [0.2f32, 0.4, 0.1, 0.3].map(f32::ln);
    let seen = |p: SamplingParams| {
        let mut seen = draws(p, &logits, 2000);
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(seen(params()), [0, 1, 2, 3]);
    assert_eq!(seen(SamplingParams { top_k: 2, ..params() }), [1, 3]);
    assert_eq!(seen(SamplingParams { top_k: 1, ..params() }), [1]);
    assert_eq!(seen(SamplingParams { top_p: 0.69, ..params() }), [1, 3]);
    assert_eq!(seen(SamplingParams { top_p: 0.71, ..params() }), [0, 1, 3]);
    assert_eq!(seen(SamplingParams { min_p: 0.6, ..params() }), [1, 3]);
    assert_eq!(seen(SamplingParams { min_p: 1.0, ..params() }), [1]);
}

#[test]
fn recent_tokens_are_penalised_once_each() {
    let greedy = SamplingParams { temp: 0.0, repeat_penalty: 2.0, ..params() };
    let mut sampler = Sampler::new(greedy).unwrap();
    sampler.accept(0);
    sampler.accept(0);
    let mut logits = [4.0, 2.5, -1.0];
    assert_eq!(sampler.sample(&mut logits, &mut []), Ok(1));
    assert_eq!(logits, [2.0, 2.5, -1.0]);
    (0..PENALTY_WINDOW).for_each(|_| sampler.accept(1));
    let mut logits = [4.0, 2.5, -1.0];
    assert_eq!(sampler.sample(&mut logits, &mut []), Ok(0));
    assert_eq!(logits[1], 1.25, "token 0 has left the window, token 1 fills it");
}

#[test]
fn damaged_logits_are_errors() {
    let mut sampler = Sampler::new(params()).unwrap();
    let mut scratch = [Candidate::default(); 3];
    let mut sample = |logits: &[f32]| sampler.sample(&mut logits.to_vec(), &mut scratch);
    assert_eq!(sample(&[0.0, f32::NAN, 1.0]), Err(SamplingError::NotANumber { token: 1 }));
    assert_eq!(sample(&[f32::NEG_INFINITY; 3]), Err(SamplingError::NoCandidate));
    assert_eq!(sample(&[]), Err(SamplingError::NoCandidate));
    assert_eq!(sample(&[0.0, f32::INFINITY, 1.0]), Err(SamplingError::NotANumber { token: 1 }));
}

#[test]
fn parameters_are_checked() {
    for (bad, option) in [
        (SamplingParams { temp: -1.0, ..params() }, "temp"),
        (SamplingParams { temp: f32::NAN, ..params() }, "temp"),
        (SamplingParams { top_p: 0.0, ..params() }, "top-p"),
        (SamplingParams { min_p: 1.5, ..params() }, "min-p"),
        (SamplingParams { repeat_penalty: 0.0, ..params() }, "repeat-penalty"),
    ] {
        match Sampler::new(bad) {
            Err(SamplingError::Param { option: found, .. }) => assert_eq!(found, option),
            other => panic!("{option}: {other:?}"),
        }
    }
}

fn steered(params: SamplingParams, logits: &[f32], constraints: Constraints<'_>) -> Result<u32, SamplingError> {
    let mut sampler = Sampler::new(params).unwrap();
    let mut candidates = vec![Candidate::default(); sampler.scratch_len(logits.len())];
    let mut seen = vec![0; logits.len().div_ceil(32)];
    let scratch = SamplerScratch { candidates: &mut candidates, seen: &mut seen };
    let token = sampler.sample_with(&mut logits.to_vec(), constraints, scratch);
    assert!(seen.iter().all(|word| *word == 0));
    token
}

#[test]
fn presence_counts_once_and_frequency_every_time() {
    let greedy = SamplingParams { temp: 0.0, ..params() };
    let (logits, generated) = ([3.0, 2.0, 1.5], [0, 0, 0, 1]);
    let token = |presence_penalty, frequency_penalty| {
        let params = SamplingParams { presence_penalty, frequency_penalty, ..greedy };
        steered(params, &logits, Constraints { generated: &generated, ..Constraints::default() }).unwrap()
    };
    assert_eq!(token(0.0, 0.0), 0);
    // 2, 1, 1.5: still the first; 1.4, 0.4, 1.5: the one that has not been.
    assert_eq!((token(1.0, 0.0), token(1.6, 0.0)), (0, 2));
    // 1.8, 1.6, 1.5 and 1.2, 1.4, 1.5.
    assert_eq!((token(0.0, 0.4), token(0.0, 0.6)), (0, 2));
    // A negative one attracts.
    assert_eq!(token(0.0, -0.5), 0);
}

#[test]
fn biases_move_and_ban() {
    for temp in [0.0, 1.0] {
        let params = SamplingParams { temp, ..params() };
        let of = |biases: &[(u32, f32)]| {
            steered(params, &[50.0, 0.0, -80.0], Constraints { biases, ..Constraints::default() })
        };
        assert_eq!(of(&[]), Ok(0));
        assert_eq!(of(&[(1, 99.0)]), Ok(1));
        assert_eq!(of(&[(0, -100.0), (1, -100.0)]), Ok(2));
        assert_eq!(of(&[(0, -100.0), (1, -200.0), (2, f32::NEG_INFINITY)]), Err(SamplingError::NoCandidate));
    }
}

#[test]
fn nothing_outside_the_mask_is_drawn() {
    let logits: Vec<f32> = (0..70).map(|i| i as f32 / 10.0).collect();
    for temp in [0.0, 1.0, 5.0] {
        let params = SamplingParams { temp, ..params() };
        let of = |allowed: &[u32]| {
            steered(params, &logits, Constraints { allowed: Some(allowed), ..Constraints::default() })
        };
        assert_eq!(of(&[1 << 5, 0, 0]), Ok(5));
        assert_eq!(of(&[0, 0, 1 << 2]), Ok(66));
        assert_eq!(of(&[0, 0, 0]), Err(SamplingError::NoCandidate));
        assert!([0, 33].contains(&of(&[1, 2, 0]).unwrap()));
    }
}

#[test]
fn top_k_is_that_of_the_whole_list_sorted() {
    // Many equals, some that are excluded, and a length that is a multiple of nothing.
    let logits: Vec<f32> = (0..2_777u32)
        .map(|i| match i.wrapping_mul(2_654_435_761) >> 16 & 0xff {
            x if x < 20 => f32::NEG_INFINITY,
            x => x as f32 / 16.0,
        })
        .collect();
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
    sorted.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    sorted.retain(|&token| logits[token as usize] > f32::NEG_INFINITY);
    for k in [1, 2, 40, 43, 44, 45, 1_000, 2_776, 2_777, 5_000] {
        let sampler = Sampler::new(SamplingParams { top_k: k, ..params() }).unwrap();
        let mut scratch = vec![[0; 2]; logits.len()];
        let likely = sampler.likely(&logits, best, &mut scratch);
        let kept: Vec<u32> = sampler.truncate(likely, best).iter().map(|c| c[0]).collect();
        assert_eq!(kept, sorted[..sorted.len().min(k as usize)], "k = {k}");
    }
}

#[test]
fn the_first_of_the_largest_and_the_first_invalid_are_found_anywhere() {
    for len in [1, 7, 8, 9, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5] {
        let mut logits: Vec<f32> = (0..len).map(|i| ((i * 37) % 11) as f32 - 20.0).collect();
        for at in [0, len / 2, len - 1] {
            let mut with = logits.clone();
            with[at] = 5.0;
            assert_eq!(argmax(&with), at);
            // The first of equal ones.
            with[len - 1] = 5.0;
            assert_eq!(argmax(&with), at);
            assert_eq!(first_invalid(&with), None);
            for invalid in [f32::NAN, -f32::NAN, f32::INFINITY] {
                with[at] = invalid;
                assert_eq!(first_invalid(&with), Some(at), "{invalid} at {at} of {len}");
            }
        }
        logits.fill(f32::NEG_INFINITY);
        assert_eq!((argmax(&logits), first_invalid(&logits)), (0, None));
    }
}
