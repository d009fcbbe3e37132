//! Tokenizers against llama.cpp's ids, against any text, and against vocabularies that lie.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fuzz/tokenizer.rs"]
mod fuzz;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use brim::gguf::Strings;
use brim::load::header::ModelFiles;
use brim::tokenizer::{self, PromptForm, Tokenizer, TokenizerError, VocabSource};

const VOCABULARIES: [&str; 3] = ["spm", "bpe", "characters"];

fn golden(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/golden/tokenizer", file].iter().collect()
}

fn json<T: serde::de::DeserializeOwned>(file: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden(file)).unwrap()).unwrap()
}

type Adjust = for<'a> fn(VocabSource<'a>) -> VocabSource<'a>;

/// Runs `test` with a golden vocabulary, its source changed by `adjust`; the file is closed before.
fn with_adjusted(name: &str, pre: Option<&str>, adjust: Adjust, test: impl FnOnce(&Tokenizer<'_>)) {
    let files = ModelFiles::open(golden(&format!("{name}.gguf"))).unwrap();
    let source = adjust(tokenizer::source_from(&files.metadata(), pre).unwrap());
    let mut region = vec![0xa5; usize::try_from(tokenizer::region_bytes(&source).unwrap()).unwrap()];
    let tokenizer = tokenizer::build(&source, &mut region).unwrap();
    drop(files);
    test(&tokenizer);
}

fn with_vocabulary(name: &str, test: impl FnOnce(&Tokenizer<'_>)) {
    with_adjusted(name, None, |source| source, test);
}

/// Ids of the texts of `strings.json`, without control tokens parsed and with.
#[derive(serde::Deserialize)]
struct Ids {
    plain: Option<Vec<Vec<u32>>>,
    special: Option<Vec<Vec<u32>>>,
}

/// Holds a tokenizer against the golden ids of `name`.
fn ids_equal(name: &str, tokenizer: &Tokenizer<'_>) {
    let texts: Vec<String> = json("strings.json");
    let golden: Ids = json(&format!("{name}.json"));
    let kinds = [(false, golden.plain), (true, golden.special)];
    assert!(kinds.iter().any(|(_, ids)| ids.is_some()), "{name}");
    for (parse_special, want) in kinds.into_iter().filter_map(|(special, ids)| ids.map(|ids| (special, ids))) {
        assert_eq!(want.len(), texts.len());
        for (text, want) in texts.iter().zip(want) {
            let mut ids = Vec::new();
            tokenizer.encode(text, parse_special, &mut ids);
            assert_eq!(ids, want, "{name}, special {parse_special}: {text:?}");
        }
    }
}

#[test]
fn a_prompt_begins_with_bos_once_whoever_writes_it() {
    with_vocabulary("spm", |tokenizer| {
        let bos = tokenizer.bos().unwrap();
        assert!(tokenizer.add_bos());
        let prompt = |text: &str, form| {
            let mut ids = vec![7];
            tokenizer.encode_prompt(text, form, &mut ids);
            assert_eq!(ids.remove(0), 7, "what was there stays");
            ids
        };
        let mut text = Vec::new();
        tokenizer.encode("a text", false, &mut text);
        let expected = [&[bos], &text[..]].concat();
        assert_eq!(prompt("a text", PromptForm::Raw), expected);
        assert_eq!(prompt("a text", PromptForm::Chat), expected);
        let written = tokenizer.template_text(Some(bos));
        let by_template = prompt(&format!("{written}a text"), PromptForm::Chat);
        assert_eq!(by_template.iter().filter(|id| **id == bos).count(), 1);
        assert_eq!(by_template[0], bos);
        // Where nobody means it as such it is text.
        let raw = prompt(&format!("{written}a text"), PromptForm::Raw);
        assert_eq!(raw.iter().filter(|id| **id == bos).count(), 1);
        assert!(raw.len() > by_template.len(), "{raw:?}");
        assert_eq!(tokenizer.template_text(None), "");
    });
}

#[test]
fn ids_equal_llama_cpp() {
    for name in VOCABULARIES {
        with_vocabulary(name, |tokenizer| ids_equal(name, tokenizer));
    }
    let phi3: Adjust = |source| VocabSource { name: Some("My Phi-3"), ..source };
    with_adjusted("spm", None, phi3, |tokenizer| ids_equal("spm-phi-3", tokenizer));
    let no_prefix: Adjust = |source| VocabSource { add_space_prefix: Some(false), ..source };
    with_adjusted("spm", None, no_prefix, |tokenizer| ids_equal("spm-no-prefix", tokenizer));
}

#[derive(serde::Deserialize)]
struct Name {
    ids: String,
    add_bos: bool,
}

#[derive(serde::Deserialize)]
struct Names {
    names: BTreeMap<String, Name>,
}

#[test]
fn every_pre_tokenizer_cuts_as_llama_cpp_does() {
    let Names { names } = json("names.json");
    for (pre, want) in &names {
        with_adjusted(
            "bpe",
            Some(pre),
            |source| source,
            |tokenizer| {
                ids_equal(&format!("pre-{}", want.ids), tokenizer);
                assert_eq!(tokenizer.add_bos(), want.add_bos, "{pre}");
            },
        );
    }
    // The refusal of another name lists those that there are: all have goldens.
    let files = ModelFiles::open(golden("bpe.gguf")).unwrap();
    let refusal = tokenizer::source_from(&files.metadata(), Some("no-such")).unwrap_err().to_string();
    let listed = refusal.split_once("there are ").unwrap().1.split(", ").map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(listed, names.into_keys().collect());
    let spm = ModelFiles::open(golden("spm.gguf")).unwrap();
    let refusal = tokenizer::source_from(&spm.metadata(), Some("qwen2")).unwrap_err();
    assert!(refusal.to_string().contains("no pre-tokenizer"), "{refusal}");
}

#[derive(serde::Deserialize)]
struct Ends {
    cases: Vec<EndsCase>,
}

#[derive(serde::Deserialize)]
struct EndsCase {
    tokens: Vec<String>,
    types: Vec<i32>,
    ids: BTreeMap<String, u32>,
    ends: Vec<u32>,
    control: Vec<u32>,
}

#[test]
fn generation_ends_where_llama_cpp_ends_it() {
    let Ends { cases } = json("ends.json");
    assert!(cases.len() > 5);
    for case in cases {
        let tokens = encoded(&case.tokens.iter().map(String::as_str).collect::<Vec<_>>());
        let types: Vec<u8> = case.types.iter().flat_map(|kind| kind.to_le_bytes()).collect();
        let merges = encoded(&["a b"]);
        let id = |key: &str| case.ids.get(key).copied();
        let source = VocabSource {
            types: Some(&types),
            eos: id("eos"),
            eot: id("eot"),
            eom: id("eom"),
            fim_pad: id("fim_pad"),
            fim_rep: id("fim_rep"),
            ..bpe(&tokens, case.tokens.len(), &merges, 1)
        };
        let mut region = vec![0; usize::try_from(tokenizer::region_bytes(&source).unwrap()).unwrap()];
        let tokenizer = tokenizer::build(&source, &mut region).unwrap();
        let all = 0..tokenizer.n_tokens();
        let ends: Vec<u32> = all.clone().filter(|&id| tokenizer.is_end_of_generation(id)).collect();
        assert_eq!(ends, case.ends, "{:?}", case.tokens);
        let control: Vec<u32> = all.filter(|&id| tokenizer.is_control(id)).collect();
        assert_eq!(control, case.control, "{:?}", case.tokens);
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): the texts of the smoke run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn text(&mut self) -> String {
        let len = self.below(60);
        (0..len)
            .map(|_| {
                let code = match self.below(6) {
                    0 => self.below(0x11_0000),
                    1 => self.below(0x3000),
                    2 => u64::from(b" \n\t'\r"[self.below(5) as usize]),
                    _ => 0x20 + self.below(0x5f),
                };
                char::from_u32(code as u32).unwrap_or('\u{fffd}')
            })
            .collect()
    }
}

#[test]
fn any_text_comes_back() {
    for name in VOCABULARIES {
        with_vocabulary(name, |tokenizer| {
            let mut random = Random(7);
            for _ in 0..2000 {
                fuzz::round_trip(tokenizer, &random.text()).unwrap();
            }
            fuzz::round_trip(tokenizer, &"word ".repeat(20_000)).unwrap();
            fuzz::round_trip(tokenizer, &"a".repeat(100_000)).unwrap();
        });
    }
}

#[test]
fn the_canary_dies() {
    // A vocabulary without the byte of "q" must lose it, or the round trip proves nothing.
    let tokens = ["a", "b", "ab"];
    let strings = encoded(&tokens);
    let merges = encoded(&["a b"]);
    let source = bpe(&strings, tokens.len(), &merges, 1);
    let mut region = vec![0; usize::try_from(tokenizer::region_bytes(&source).unwrap()).unwrap()];
    let tokenizer = tokenizer::build(&source, &mut region).unwrap();
    fuzz::round_trip(&tokenizer, "abba").unwrap();
    fuzz::round_trip(&tokenizer, "abqa").unwrap_err();
}

#[test]
fn ends_and_specials_are_known() {
    with_vocabulary("bpe", |tokenizer| {
        for text in ["<|endoftext|>", "<|im_end|>"] {
            let id = tokenizer.find(text).unwrap();
            assert!(tokenizer.is_end_of_generation(id) && tokenizer.is_control(id), "{text}");
        }
        assert_eq!(tokenizer.eos(), tokenizer.find("<|endoftext|>"));
        assert!(!tokenizer.is_end_of_generation(tokenizer.find("<|im_start|>").unwrap()));
        assert!(!tokenizer.is_end_of_generation(u32::MAX));
        assert!(!tokenizer.add_bos() && !tokenizer.add_eos());
    });
    with_vocabulary("spm", |tokenizer| {
        assert!(tokenizer.add_bos() && tokenizer.add_space_prefix());
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unk()), (Some(1), Some(2), Some(0)));
        let mut bytes = Vec::new();
        tokenizer.token_bytes(1, false, &mut bytes);
        tokenizer.token_bytes(u32::MAX, true, &mut bytes);
        assert!(bytes.is_empty(), "control tokens are hidden, unknown ids are nothing");
        tokenizer.token_bytes(1, true, &mut bytes);
        assert_eq!(bytes, b"<s>");
    });
}

fn encoded(strings: &[&str]) -> Vec<u8> {
    strings.iter().flat_map(|s| [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()).collect()
}

fn bpe<'a>(tokens: &'a [u8], n_tokens: usize, merges: &'a [u8], n_merges: usize) -> VocabSource<'a> {
    VocabSource {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: Strings::take(n_tokens, tokens).unwrap(),
        merges: Strings::take(n_merges, merges),
        ..VocabSource::default()
    }
}

fn refusal(source: &VocabSource<'_>) -> TokenizerError {
    let bytes = match tokenizer::region_bytes(source) {
        Ok(bytes) => bytes,
        Err(e) => return e,
    };
    let mut region = vec![0; usize::try_from(bytes).unwrap()];
    let error = tokenizer::build(source, &mut region).unwrap_err();
    assert!(!error.to_string().is_empty());
    error
}

#[test]
fn vocabularies_that_lie_are_refused() {
    let tokens = encoded(&["a", "b", "ab"]);
    let merges = encoded(&["a b"]);
    let good = bpe(&tokens, 3, &merges, 1);
    tokenizer::build(&good, &mut vec![0; usize::try_from(tokenizer::region_bytes(&good).unwrap()).unwrap()]).unwrap();

    assert!(matches!(refusal(&VocabSource { model: "rwkv", ..good }), TokenizerError::UnknownModel(_)));
    let unknown = refusal(&VocabSource { pre: Some("no-such"), ..good });
    assert!(unknown.to_string().contains("no-such"), "{unknown}");
    assert_eq!(refusal(&VocabSource { merges: None, ..good }), TokenizerError::Missing("tokenizer.ggml.merges"));
    assert_eq!(refusal(&VocabSource { tokens: Strings::default(), ..good }), TokenizerError::NoTokens);
    assert!(matches!(refusal(&VocabSource { bos: Some(3), ..good }), TokenizerError::IdOutOfRange { id: 3, .. }));
    let short = TokenizerError::Short { what: "tokenizer.ggml.token_type", have: 2, need: 3 };
    assert_eq!(refusal(&VocabSource { types: Some(&[0; 11]), ..good }), short);

    for bad in ["a c", "c a", "b a", "ab", "", " ", "a ", " b"] {
        let merges = encoded(&["a b", bad]);
        assert_eq!(refusal(&bpe(&tokens, 3, &merges, 2)), TokenizerError::BadMerge { index: 1 }, "{bad:?}");
    }
    let twice = encoded(&["a", "b", "a"]);
    assert_eq!(refusal(&bpe(&twice, 3, &merges, 1)), TokenizerError::Duplicate { first: 0, second: 2 });

    let spm = VocabSource { model: "llama", ..good };
    assert_eq!(refusal(&spm), TokenizerError::Missing("tokenizer.ggml.scores"));
    let mut scores = [0; 12];
    scores[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(refusal(&VocabSource { scores: Some(&scores), ..spm }), TokenizerError::ScoreNotANumber { id: 1 });
    assert!(matches!(refusal(&VocabSource { scores: Some(&scores[..8]), ..spm }), TokenizerError::Short { .. }));

    let need = tokenizer::region_bytes(&good).unwrap();
    let have = need - 1;
    let mut region = vec![0; usize::try_from(have).unwrap()];
    assert_eq!(tokenizer::build(&good, &mut region).unwrap_err(), TokenizerError::Region { have, need });
}

#[test]
fn empty_tokens_have_names() {
    let tokens = encoded(&["a", "", "b", "ab"]);
    let merges = encoded(&["a b"]);
    let source = bpe(&tokens, 4, &merges, 1);
    let mut region = vec![0; usize::try_from(tokenizer::region_bytes(&source).unwrap()).unwrap()];
    let tokenizer = tokenizer::build(&source, &mut region).unwrap();
    assert_eq!(tokenizer.find("[EMPTY_1]"), Some(1));
}
