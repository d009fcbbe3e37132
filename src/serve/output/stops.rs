//! Texts that end an answer. They are looked for in what the model says, and not in its thoughts or in arguments of calls.

use super::pieces::{Delta, held, release};

/// Looks for the texts that end one answer.
pub struct Stops {
    stops: Vec<String>,
    /// What is said, and may be the beginning of one.
    said: String,
}

/// A text that ends an answer has come.
#[derive(Debug, PartialEq)]
pub struct Stopped {
    /// Which.
    pub stop: String,
    /// Bytes of the answer that are left out: the text, and what came behind it.
    pub n_bytes: usize,
}

impl Stops {
    /// For these texts.
    pub fn new(stops: Vec<String>) -> Stops {
        Stops { stops, said: String::new() }
    }

    /// Bytes that may be the beginning of such a text.
    pub fn waiting(&self) -> usize {
        self.said.len()
    }

    /// Takes pieces of the answer, and appends those that are certain.
    pub fn filter(&mut self, deltas: Vec<Delta>, out: &mut Vec<Delta>) -> Option<Stopped> {
        for delta in deltas {
            let Delta::Content(text) = delta else {
                self.finish(out);
                out.push(delta);
                continue;
            };
            self.said.push_str(&text);
            let found = self.stops.iter().filter_map(|stop| self.said.find(stop.as_str()).map(|at| (at, stop)));
            if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
                let stopped = Stopped { stop: stop.clone(), n_bytes: self.said.len() - at };
                self.said.truncate(at);
                self.finish(out);
                return Some(stopped);
            }
            let keep = self.stops.iter().map(|stop| held(&self.said, &[stop])).max().unwrap_or(0);
            release(&mut self.said, keep, out, Delta::Content);
        }
        None
    }

    /// What was said is said.
    pub fn finish(&mut self, out: &mut Vec<Delta>) {
        release(&mut self.said, 0, out, Delta::Content);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Delta {
        Delta::Content(text.to_owned())
    }

    #[test]
    fn only_what_is_said_is_stopped() {
        let mut stops = Stops::new(vec!["END".to_owned(), "\n\n".to_owned()]);
        let mut out = Vec::new();
        let other = vec![
            Delta::Reasoning("a END\n\n".to_owned()),
            said("x E"),
            Delta::Call("f".to_owned()),
            Delta::Arguments("END".to_owned()),
            said("ND y EN"),
        ];
        assert_eq!(stops.filter(other, &mut out), None);
        assert_eq!(stops.waiting(), 2);
        let pieces: Vec<Delta> = std::mem::take(&mut out);
        assert_eq!(pieces.len(), 6, "{pieces:?}");
        assert_eq!(pieces[1..3], [said("x "), said("E")]);
        assert_eq!(pieces[5], said("ND y "));
        let stopped = stops.filter(vec![said("D. More")], &mut out).unwrap();
        assert_eq!((stopped.stop.as_str(), stopped.n_bytes), ("END", 9));
        assert_eq!(out, []);
    }
}
