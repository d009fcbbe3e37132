//! After which pages a sequence leaves checkpoints, where there are not enough for every page.
//!
//! A state may take as much memory as the keys and values of thousands of tokens, so there may be a few tens of checkpoints
//! only. They are left where a later request is likely to go on; of a prompt, in this order for as long as there are enough:
//!
//! 1. after its last page, not counting its last token, which is always computed: the same prompt again computes no more
//!    than a page;
//! 2. where it leaves what others have computed: so much of it is known to be shared;
//! 3. before its first two messages that begin in another page: with the tools or the system prompt ends what all
//!    conversations of a client have in common;
//! 4. before its last four: a client that changes its last message, or takes back a turn, goes on from there;
//! 5. every [`INTERVAL_TOKENS`], where none of these is near.
//!
//! Only what is not computed yet when the prompt gets its slot counts. While a sequence generates, it leaves one after every
//! page, in place of the one before, so that an answer of any length takes one: the request that continues the conversation
//! goes on from it. What has not been used for longest makes room.

use crate::model::cache::{CachePlan, PAGE_TOKENS};

/// A long prompt leaves a checkpoint after so many tokens, so that another that differs somewhere in the middle, or this one
/// when its client has gone and comes back, computes no more than these again: some ten seconds on a small box. They are
/// farther apart, by powers of two, where there are not enough.
const INTERVAL_TOKENS: usize = 2048;

/// Messages at the beginning and at the end of a prompt.
const FIRST_MESSAGES: usize = 2;
const LAST_MESSAGES: usize = 4;

/// Most checkpoints of one prompt.
const STOPS_MAX: usize = 32;

/// What becomes of the checkpoint after a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It stays until its place is needed.
    Kept,
    /// The next one of the same sequence takes its place.
    Rolling,
}

/// After which pages one sequence leaves checkpoints. Pages are counted from its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stops {
    /// After so many pages.
    kept: heapless::Vec<usize, STOPS_MAX>,
    /// After every page behind so many.
    rolling_from: usize,
}

impl Stops {
    /// There is to be one after so many pages too; false if there is no room for it.
    pub fn insert(&mut self, pages: usize) -> bool {
        self.after(pages).is_some() || self.kept.push(pages).is_ok()
    }

    /// Whether there is a checkpoint after `pages` pages.
    pub fn after(&self, pages: usize) -> Option<Stop> {
        match pages > self.rolling_from {
            true => Some(Stop::Rolling),
            false => self.kept.contains(&pages).then_some(Stop::Kept),
        }
    }
}

/// What decides it, the same for all sequences.
pub(super) struct StopRules {
    /// Most checkpoints of one prompt; 0 where every page can have one, or none can.
    most: usize,
    /// Tokens that begin a message, bit by bit.
    message_starts: Vec<u32>,
}

/// The part of a prompt that is to be computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uncomputed<'p> {
    /// All tokens.
    pub prompt: &'p [u32],
    /// Pages that the sequence has already.
    pub held: usize,
    /// Pages that others have computed, even if the sequence cannot go on after them.
    pub shared: usize,
}

impl StopRules {
    /// One prompt takes half of the checkpoints, so that not all of the others are lost to it.
    pub fn new(plan: &CachePlan) -> StopRules {
        let most = if plan.has_checkpoint_for_every_page() { 0 } else { plan.n_checkpoints.div_ceil(2) };
        StopRules { most: most.min(STOPS_MAX), message_starts: Vec::new() }
    }

    /// Whether a prompt leaves checkpoints, and not after every page.
    pub fn are_selective(&self) -> bool {
        self.most > 0
    }

    /// From here on these tokens begin messages.
    pub fn set_message_starts(&mut self, tokens: &[u32]) {
        let n_words = tokens.iter().max().map_or(0, |&token| token as usize / 32 + 1);
        self.message_starts = vec![0; n_words];
        for &token in tokens {
            self.message_starts[token as usize / 32] |= 1 << (token % 32);
        }
    }

    fn begins_message(&self, token: u32) -> bool {
        self.message_starts.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Those of a prompt, and of the answer to it.
    pub fn of_prompt(&self, uncomputed: Uncomputed<'_>) -> Stops {
        let Uncomputed { prompt, held, shared } = uncomputed;
        let last = (prompt.len() - 1) / PAGE_TOKENS;
        let mut stops = Stops { kept: heapless::Vec::new(), rolling_from: last };
        if last <= held || self.most == 0 {
            return stops;
        }
        let mut add = |pages: usize| self.add(&mut stops, held, pages);
        add(last);
        add(shared.min(last));
        let first = (held + 1) * PAGE_TOKENS;
        let begins = |position: &usize| self.begins_message(prompt[*position]);
        let page_of = |position: usize| position / PAGE_TOKENS;
        let messages = (first..prompt.len()).filter(begins).map(page_of);
        each_distinct(messages.clone(), FIRST_MESSAGES, &mut add);
        each_distinct(messages.rev(), LAST_MESSAGES, &mut add);
        self.add_intervals(&mut stops, held, last);
        stops
    }

    /// Those of tokens that a sequence with `held` whole pages is fed until it has `end`; of one token, those of an answer.
    pub fn of_feed(&self, held: usize, n: usize, end: usize) -> Stops {
        if n == 1 {
            return Stops::default();
        }
        let last = (end - 1) / PAGE_TOKENS;
        let mut stops = Stops { kept: heapless::Vec::new(), rolling_from: usize::MAX };
        self.add(&mut stops, held, last);
        self.add(&mut stops, held, end / PAGE_TOKENS);
        self.add_intervals(&mut stops, held, last);
        stops
    }

    fn add(&self, stops: &mut Stops, held: usize, pages: usize) {
        if pages > held && stops.kept.len() < self.most && !stops.kept.contains(&pages) {
            // `most` is no more than there is room for.
            let _ = stops.kept.push(pages);
        }
    }

    fn add_intervals(&self, stops: &mut Stops, held: usize, last: usize) {
        let left = self.most.saturating_sub(stops.kept.len());
        if left == 0 {
            return;
        }
        let mut interval = INTERVAL_TOKENS / PAGE_TOKENS;
        while last / interval - held / interval > left {
            interval *= 2;
        }
        for pages in (held / interval + 1..=last / interval).map(|i| i * interval) {
            let is_near = |other: usize| pages.abs_diff(other) < interval / 2;
            if !is_near(held) && !stops.kept.iter().any(|&other| is_near(other)) {
                self.add(stops, held, pages);
            }
        }
    }
}

/// Hands the first `n` different ones of pages that only grow, or only shrink, to `each`.
fn each_distinct(pages: impl Iterator<Item = usize>, n: usize, each: &mut impl FnMut(usize)) {
    let (mut previous, mut count) = (None, 0);
    for page in pages {
        if previous != Some(page) {
            if count == n {
                return;
            }
            each(page);
            (previous, count) = (Some(page), count + 1);
        }
    }
}

#[cfg(test)]
impl Stops {
    /// After exactly these pages.
    pub fn kept_after(pages: impl IntoIterator<Item = usize>) -> Stops {
        Stops { kept: pages.into_iter().collect(), rolling_from: usize::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: u32 = 77;

    fn rules(most: usize) -> StopRules {
        let mut rules = StopRules { most, message_starts: Vec::new() };
        rules.set_message_starts(&[3, MESSAGE]);
        rules
    }

    fn prompt(n: usize, messages: &[usize]) -> Vec<u32> {
        let mut prompt = vec![1; n];
        messages.iter().for_each(|&position| prompt[position] = MESSAGE);
        prompt
    }

    /// The pages after which checkpoints are kept, in order.
    fn kept(most: usize, prompt: &[u32], (held, shared): (usize, usize)) -> Vec<usize> {
        let stops = rules(most).of_prompt(Uncomputed { prompt, held, shared });
        assert!(stops.kept.len() <= most);
        let last = (prompt.len() - 1) / PAGE_TOKENS;
        assert!((last + 1..last + 9).all(|pages| stops.after(pages) == Some(Stop::Rolling)));
        (1..=last).filter(|&pages| stops.after(pages) == Some(Stop::Kept)).collect()
    }

    #[test]
    fn a_prompt_stops_before_its_messages_and_before_its_last_token() {
        let chat = prompt(1000, &[0, 3, 300, 301, 400, 500, 600, 700, 800, 990]);
        // In pages 4, 4, 6, 7, 9, 10, 12 and 15, which is the last: the first two, the last four.
        assert_eq!(kept(32, &chat, (0, 0)), [4, 6, 9, 10, 12, 15]);
        // What others have computed, whether there are messages or not.
        assert_eq!(kept(32, &chat, (0, 5)), [4, 5, 6, 9, 10, 12, 15]);
        assert_eq!(kept(32, &prompt(1000, &[]), (2, 5)), [5, 15]);
        // What is left to compute counts.
        assert_eq!(kept(32, &chat, (9, 9)), [10, 12, 15]);
        assert_eq!(kept(32, &chat, (15, 15)), [0; 0]);
        // Where there are few, in the order of the list at the top.
        assert_eq!(kept(1, &chat, (0, 5)), [15]);
        assert_eq!(kept(2, &chat, (0, 5)), [5, 15]);
        assert_eq!(kept(3, &chat, (0, 5)), [4, 5, 15]);
        assert_eq!(kept(4, &chat, (0, 0)), [4, 6, 12, 15]);
        assert_eq!(kept(0, &chat, (0, 5)), [0; 0]);
    }

    #[test]
    fn the_last_token_is_always_computed() {
        for (n, expected) in [(1, &[][..]), (64, &[]), (65, &[1]), (128, &[1]), (129, &[2])] {
            assert_eq!(kept(8, &prompt(n, &[]), (0, 0)), expected, "{n}");
        }
    }

    #[test]
    fn a_long_prompt_stops_at_intervals_as_far_apart_as_there_are_checkpoints() {
        let long = prompt(100_000, &[]);
        assert_eq!(kept(32, &prompt(5200, &[]), (0, 0)), [32, 64, 81]);
        assert_eq!(kept(32, &prompt(5200, &[]), (40, 40)), [64, 81]);
        // Not beside another.
        assert_eq!(kept(32, &prompt(5200, &[2000]), (0, 0)), [31, 64, 81]);
        assert_eq!(kept(32, &prompt(5200, &[]), (31, 31)), [64, 81]);
        assert_eq!(kept(32, &prompt(5000, &[]), (0, 0)), [32, 78]);
        // The last is near the end.
        let every = |interval: usize| (1..1562 / interval).map(|i| i * interval).chain([1562]).collect::<Vec<_>>();
        assert_eq!(kept(32, &long, (0, 0)), every(64));
        assert_eq!(kept(4, &long, (0, 0)), every(512));
        assert_eq!(kept(2, &long, (0, 0)), [1024, 1562]);
        assert_eq!(kept(1, &long, (0, 0)), [1562]);
    }

    #[test]
    fn a_sequence_alone_stops_at_the_end_of_what_it_is_fed() {
        let kept = |held, n, end| rules(4).of_feed(held, n, end).kept;
        assert_eq!(kept(0, 300, 300), [4]);
        assert_eq!(kept(0, 320, 320), [4, 5]);
        assert_eq!(kept(4, 10, 310), [0; 0]);
        assert_eq!(rules(4).of_feed(4, 1, 320).after(5), Some(Stop::Rolling));
        assert_eq!(rules(4).of_feed(4, 10, 320).after(6), None);
    }
}
