//! Ids of calls for templates that want them short.

use super::turn::Turn;

/// How long Mistral's templates want them, and of letters and digits alone.
const ID_LEN: usize = 9;

/// Makes ids nine letters and digits: what clients send is longer, and templates that want them so refuse it.
pub fn shorten_ids(turns: &mut [Turn]) {
    for message in turns.iter_mut().map(|turn| &mut turn.message) {
        let ids = message.tool_calls.iter_mut().map(|call| &mut call.id);
        ids.chain(message.tool_call_id.as_mut()).for_each(|id| *id = short(id));
    }
}

/// The end of an id, which is what tells ids apart, filled up with zeros.
fn short(id: &str) -> String {
    let letters: Vec<char> = id.chars().filter(char::is_ascii_alphanumeric).collect();
    let end: String = letters[letters.len().saturating_sub(ID_LEN)..].iter().collect();
    format!("{end:0>ID_LEN$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_remain_apart() {
        assert_eq!(short("call_00123456789abcdef"), "789abcdef");
        assert_eq!(short("Abc-12"), "0000Abc12");
        assert_eq!(short("123456789"), "123456789");
    }
}
