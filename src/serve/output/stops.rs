//! Texts that end an answer, and lines that do. They are looked for in what the model says, and not in its thoughts or in
//! arguments of calls.

use super::pieces::{Delta, held, release};

/// Looks for the texts that end one answer.
pub struct Stops {
    stops: Vec<String>,
    /// What is said, and may be the beginning of one.
    said: String,
    /// A line with less in front of its text ends it; 0: none does.
    indent: usize,
    /// How many blanks a line has that is nothing else so far; they are the end of what is said.
    blanks: Option<usize>,
}

/// A text that ends an answer has come.
#[derive(Debug, PartialEq)]
pub struct Stopped {
    /// Which; empty for a line that is indented too little.
    pub stop: String,
    /// Bytes of the answer that are left out: the text, and what came behind it.
    pub n_bytes: usize,
}

impl Stops {
    /// For these texts, and lines that are indented less than `indent`; the first counts for none.
    pub fn new(stops: Vec<String>, indent: usize) -> Stops {
        Stops { stops, said: String::new(), indent, blanks: None }
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
            let from = self.said.len();
            self.said.push_str(&text);
            let outdented = self.outdented(from).map(|at| (at, ""));
            let found =
                self.stops.iter().filter_map(|stop| self.said.find(stop.as_str()).map(|at| (at, stop.as_str())));
            if let Some((at, stop)) = found.chain(outdented).min_by_key(|(at, _)| *at) {
                let stopped = Stopped { stop: stop.to_owned(), n_bytes: self.said.len() - at };
                self.said.truncate(at);
                self.finish(out);
                return Some(stopped);
            }
            let keep = self.stops.iter().map(|stop| held(&self.said, &[stop])).max().unwrap_or(0);
            release(&mut self.said, keep.max(self.blanks.unwrap_or(0)), out, Delta::Content);
        }
        None
    }

    /// Where the first line begins that is indented too little, of what is said from `from` on; an empty one is not.
    fn outdented(&mut self, from: usize) -> Option<usize> {
        for (at, byte) in self.said.bytes().enumerate().skip(from).take_while(|_| self.indent > 0) {
            self.blanks = match (byte, self.blanks) {
                (b'\n', _) => Some(0),
                (b' ' | b'\t' | b'\r', Some(n)) => Some(n + 1),
                (_, Some(n)) if n < self.indent => return Some(at - n),
                _ => None,
            };
        }
        None
    }

    /// What was said is said.
    pub fn finish(&mut self, out: &mut Vec<Delta>) {
        self.blanks = None;
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
        let mut stops = Stops::new(vec!["END".to_owned(), "\n\n".to_owned()], 0);
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

    #[test]
    fn a_line_that_is_indented_too_little_ends_it() {
        for pieces in [
            &["if x {\n", "    y\n", "\n  ", "\t z\n  ", "  ", " w\n", "  }\n"][..],
            &["if x {\n    y\n\n  \t z\n     w\n  }"],
        ] {
            let mut stops = Stops::new(vec!["never".to_owned()], 4);
            let mut out = Vec::new();
            let stopped = pieces.iter().find_map(|piece| stops.filter(vec![said(piece)], &mut out)).unwrap();
            assert!(stopped.stop.is_empty() && stopped.n_bytes >= 3, "{stopped:?}");
            let text = |delta: &Delta| if let Delta::Content(text) = delta { text.clone() } else { String::new() };
            assert_eq!(out.iter().map(text).collect::<String>(), "if x {\n    y\n\n  \t z\n     w\n");
        }
        // What stands in between is written, and counts for nothing behind it.
        let mut stops = Stops::new(Vec::new(), 4);
        let mut out = Vec::new();
        let mixed = vec![said("a\n  "), Delta::Reasoning("b".to_owned()), said("c")];
        assert_eq!((stops.filter(mixed, &mut out), out.len()), (None, 4), "{out:?}");
    }
}
