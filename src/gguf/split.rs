//! Split sets: one model in several files, each with its own header and tensors.
//!
//! Names end in `-00001-of-00003.gguf`; `split.no` (from 0), `split.count` and `split.tensors.count` say the same inside.

use super::error::GgufError;
use super::tables::Tables;

/// The parts of a file name such as `model-00001-of-00003.gguf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitName<'a> {
    /// What comes before `-00001-of-00003.gguf`.
    pub prefix: &'a str,
    /// Its place, from 1 as in the name.
    pub number: u32,
    /// Files of the set.
    pub count: u32,
}

impl<'a> SplitName<'a> {
    /// Takes a file name apart; `None` if it is not one of a split set.
    pub fn parse(name: &'a str) -> Option<Self> {
        let stem = name.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let parsed = SplitName { prefix, number: number.parse().ok()?, count: count.parse().ok()? };
        let valid = (1..=parsed.count).contains(&parsed.number) && parsed.with_number(parsed.number) == name;
        valid.then_some(parsed)
    }

    fn with_number(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

/// Names of the files of a set of `count` from the name of its first, that one included.
///
/// # Errors
/// If the name is not that of the first file of such a set.
pub fn sibling_names(first: &str, count: u32) -> Result<impl Iterator<Item = String> + '_, GgufError> {
    match SplitName::parse(first) {
        Some(name) if name.number == 1 && name.count == count => Ok((1..=count).map(move |n| name.with_number(n))),
        _ => Err(GgufError::SplitName { count }),
    }
}

/// How many files the set has whose first file is read into `tables`.
///
/// # Errors
/// If the file is not the first of its set.
///
/// # Panics
/// If no file has been read.
pub fn set_len(tables: &Tables) -> Result<u32, GgufError> {
    match tables.parts[0].split {
        None => Ok(1),
        Some(claim) if claim.no == 0 => Ok(claim.count as u32),
        Some(claim) => Err(GgufError::SplitNotFirst {
            no: u32::try_from(claim.no).unwrap_or(u32::MAX).saturating_add(1),
            count: claim.count as u32,
        }),
    }
}

/// Checks that all files read belong together and are complete; then tensors can be found by name.
///
/// # Errors
/// If places, counts or names contradict each other.
///
/// # Panics
/// If no file has been read.
pub fn check_set(tables: &mut Tables) -> Result<(), GgufError> {
    let needed = u64::from(set_len(tables)?);
    for (index, part) in tables.parts.iter().enumerate() {
        let file = index as u32 + 1;
        let (no, count) = part.split.map_or((0, 1), |claim| (claim.no, claim.count));
        if count != needed {
            return Err(GgufError::SplitCount { file, found: count, needed });
        }
        if no != index as u64 {
            return Err(GgufError::SplitOrder { found: no.saturating_add(1), needed: u64::from(file) });
        }
    }
    let read = tables.parts.len() as u64;
    if read != needed {
        return Err(GgufError::SplitCount { file: read as u32, found: read, needed });
    }
    for claim in tables.parts.iter().filter_map(|p| p.split) {
        let found = tables.tensors.len() as u64;
        if found != claim.tensors {
            return Err(GgufError::SplitTensors { found, needed: claim.tensors });
        }
    }
    tables.check_names(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        let name = SplitName::parse("Qwen-3-Q4_K-00002-of-00004.gguf").unwrap();
        assert_eq!(name, SplitName { prefix: "Qwen-3-Q4_K", number: 2, count: 4 });
        let all: Vec<_> = sibling_names("a-00001-of-00003.gguf", 3).unwrap().collect();
        assert_eq!(all, ["a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "a-00003-of-00003.gguf"]);
    }

    #[test]
    fn other_names_are_not_of_a_set() {
        for name in
            ["a.gguf", "a-1-of-3.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-00001-of-00003.bin"]
        {
            assert_eq!(SplitName::parse(name), None, "{name}");
        }
        assert_eq!(SplitName::parse("a-+0001-of-00003.gguf"), None);
        assert!(sibling_names("a-00002-of-00003.gguf", 3).is_err());
        assert!(sibling_names("a-00001-of-00003.gguf", 4).is_err());
    }
}
