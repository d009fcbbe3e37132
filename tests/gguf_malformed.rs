//! Every way a GGUF file can be wrong, and the sentence that refuses it.

#[path = "fuzz/gguf.rs"]
mod fuzz;
#[path = "common/gguf.rs"]
mod writer;

use brim::gguf::{GgufError, MAX_METADATA, MAX_TENSORS, Tables, check_set, parse};
use writer::{Gguf, string};

/// Metadata of several types and two tensors.
fn small() -> Gguf {
    Gguf::new()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("eps", 1e-5)
        .bool("flag", true)
        .strings("tokens", &["a", "", "bc"])
        .i32s("types", &[1, 2, 3])
        .tensor("a.weight", &[4, 2], 0, &[0; 32])
        .tensor("b.weight", &[32, 3], 8, &[1; 102])
}

fn refusal(bytes: &[u8]) -> String {
    let mut tables = Tables::new_boxed();
    let parsed = parse(bytes, bytes.len() as u64, 0, &mut tables).and_then(|_| check_set(&mut tables));
    parsed.map_or_else(|e| e.to_string(), |()| "accepted".to_owned())
}

fn one(n_dims: u32, dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    Gguf::new().raw_tensor(b"t", n_dims, dims, ty, offset).build()
}

fn with(change: impl FnOnce(&mut Gguf)) -> Vec<u8> {
    let mut file = small();
    change(&mut file);
    file.build()
}

/// `depth` arrays around one u8.
fn nested(depth: usize) -> Vec<u8> {
    let mut value = [&0u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[7]].concat();
    for _ in 1..depth {
        value = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &value].concat();
    }
    Gguf::new().raw(b"k", 9, &value).build()
}

fn formats() -> Vec<(Vec<u8>, &'static str)> {
    let mut safetensors = 40u64.to_le_bytes().to_vec();
    safetensors.extend(b"{\"a\":{}}");
    vec![
        (vec![], "is empty"),
        (vec![0; 5000], "starts with zeros"),
        (b"hello, world\n".to_vec(), "is text"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull"),
        (b"\n<!DOCTYPE html><html>".to_vec(), "web page"),
        (b"PK\x03\x04\0\0".to_vec(), "zip archive"),
        (b"\x80\x02\x8a\x0a".to_vec(), "pickle"),
        (safetensors, "safetensors"),
        (b"lmgg\0\0\0\0".to_vec(), "old ggml format"),
        (b"fmgg\x01\0\0\0".to_vec(), "old ggmf format"),
        (b"tjgg\x03\0\0\0".to_vec(), "old ggjt format"),
        (b"algg\x01\0\0\0".to_vec(), "old ggla format"),
        (b"\x1f\x8b\x08\0".to_vec(), "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd".to_vec(), "compressed with zstd"),
        (b"\xfd7zXZ\0".to_vec(), "compressed with xz"),
        (b"BZh9\x01".to_vec(), "compressed with bzip2"),
        (b"\x7fELF\x02".to_vec(), "7f 45 4c 46"),
        (b"GG".to_vec(), "cut off: the header needs bytes up to 4, the file has 2"),
        (b"FUGG\0\0\0\x03".to_vec(), "big-endian GGUF file (version 3)"),
        (with(|f| f.version = 0), "GGUF version 0 is not supported"),
        (with(|f| f.version = 1), "version 1 is not supported, 2 and 3 are: convert the model again"),
        (with(|f| f.version = 4), "GGUF version 4 is not supported"),
        (with(|f| f.version = 3 << 24), "big-endian GGUF file (version 3)"),
        (with(|f| f.version = 2 << 24), "big-endian GGUF file (version 2)"),
        (with(|f| f.version = u32::MAX), "version 4294967295"),
    ]
}

fn counts_and_keys() -> Vec<(Vec<u8>, &'static str)> {
    let long = string(&[b'x'; 2000]);
    let huge = (1u64 << 40).to_le_bytes();
    vec![
        (with(|f| f.n_tensors = Some(u64::MAX)), "table of tensors holds 4096"),
        (with(|f| f.n_tensors = Some(4097)), "table of tensors holds 4096, this model needs 4097"),
        (with(|f| f.n_tensors = Some(4096)), "claims 4096 tensors"),
        (with(|f| f.n_tensors = Some(3)), "tensor 2 has no name"),
        (with(|f| f.n_metadata = Some(u64::MAX)), "table of metadata keys holds 512"),
        (with(|f| f.n_metadata = Some(513)), "table of metadata keys holds 512, this model needs 513"),
        (with(|f| f.n_metadata = Some(512)), "claims 512 metadata keys"),
        (Gguf::new().raw(b"", 0, &[1]).build(), "metadata key 0 is empty"),
        (Gguf::new().raw(b"a b", 0, &[1]).build(), "has byte 0x20"),
        (Gguf::new().raw(b"a\n", 0, &[1]).build(), "has byte 0x0a"),
        (Gguf::new().raw("ä".as_bytes(), 0, &[1]).build(), "has byte 0xc3"),
        (Gguf::new().raw(&[b'x'; 1025], 0, &[1]).build(), "claims 1025 bytes, the limit is 1024"),
        (small().u32("eps", 1).build(), "`eps` is given twice"),
        (Gguf::new().raw(b"k", 13, &[1]).build(), "value type 13"),
        (Gguf::new().raw(b"k", u32::MAX, &[1]).build(), "value type 4294967295"),
        (Gguf::new().raw(b"k", 7, &[2]).build(), "boolean value 2"),
        (Gguf::new().array("k", 7, 3, &[0, 1, 255]).build(), "boolean value 255"),
        (Gguf::new().raw(b"k", 8, &huge).build(), "a metadata string at byte 37 claims 1099511627776"),
        (Gguf::new().raw(b"k", 8, &long[..1000]).build(), "cut off: a metadata string"),
        (Gguf::new().raw(b"k", 10, &[1]).header(), "cut off: the metadata needs bytes up to 45, the file has 38"),
        (Gguf::new().array("k", 13, 1, &[0; 8]).build(), "value type 13"),
        (Gguf::new().array("k", 0, u64::MAX, &[0; 8]).build(), "claims 18446744073709551615 array elements"),
        (Gguf::new().array("k", 4, 1 << 62, &[0; 8]).build(), "claims 4611686018427387904 array elements"),
        (Gguf::new().array("k", 8, 1 << 30, &[0; 8]).build(), "claims 1073741824 array elements"),
        (Gguf::new().array("k", 9, 1 << 30, &[0; 8]).build(), "claims 1073741824 array elements"),
        (Gguf::new().array("k", 8, 1, &huge).build(), "a metadata string at byte"),
        (nested(5), "nests arrays deeper than 4"),
        (nested(60), "nests arrays deeper than 4"),
        (Gguf::new().u32("general.alignment", 0).build(), "general.alignment is 0"),
        (Gguf::new().u32("general.alignment", 48).build(), "general.alignment is 48"),
        (Gguf::new().u32("general.alignment", 1 << 22).build(), "general.alignment is 4194304"),
        (Gguf::new().u64("general.alignment", 1 << 63).build(), "general.alignment is 9223372036854775808"),
        (Gguf::new().str("general.alignment", "32").build(), "`general.alignment` is string"),
        (Gguf::new().raw(b"general.alignment", 5, &(-8i32).to_le_bytes()).build(), "`general.alignment` is -8"),
    ]
}

fn tensors() -> Vec<(Vec<u8>, &'static str)> {
    let named = |name: &[u8]| Gguf::new().raw_tensor(name, 1, &[8], 0, 0).build();
    let pair = |a: u64, b: u64| {
        let file = Gguf::new().raw_tensor(b"a", 1, &[16], 0, a).raw_tensor(b"b", 1, &[16], 0, b);
        [file.build(), vec![0; 256]].concat()
    };
    let mut rows = vec![
        (named(b""), "tensor 0 has no name"),
        (named(b"\xff\xfe"), "name of tensor 0 is not UTF-8"),
        (named(b"a\x1b[2J"), "control characters"),
        (named(&[b'n'; 65]), "a tensor name at byte 24 claims 65 bytes, the limit is 64"),
        (one(0, &[], 0, 0).into_iter().chain([0; 64]).collect(), "has 0 dimensions"),
        (one(5, &[1; 5], 0, 0), "has 5 dimensions"),
        (one(u32::MAX, &[1], 0, 0), "has 4294967295 dimensions"),
        (one(1, &[0], 0, 0), "size 0 in dimension 0"),
        (one(3, &[4, 4, 0], 0, 0), "size 0 in dimension 2"),
        (one(1, &[u64::MAX], 0, 0), "larger than any file"),
        (one(2, &[1 << 32, 1 << 32], 24, 0), "larger than any file"),
        (one(4, &[1 << 16; 4], 24, 0), "larger than any file"),
        (one(1, &[1 << 62], 0, 0), "larger than any file"),
        (one(1, &[33], 8, 0), "rows of 33 elements, Q8_0 needs a multiple of 32"),
        (one(2, &[128, 2], 12, 0), "rows of 128 elements, Q4_K needs a multiple of 256"),
        (one(1, &[65], 42, 0), "Q2_0 needs a multiple of 64"),
        (one(1, &[8], brim::quant::TensorType::ID_MAX + 1, 0), "are known: use a newer brim"),
        (one(1, &[8], u32::MAX, 0), "type 4294967295"),
        (one(1, &[8], 0, 16), "offset 16; it must be at a multiple of 32"),
        (one(1, &[8], 0, u64::MAX), "offset 18446744073709551615"),
        (one(1, &[8], 0, u64::MAX - 31), "cut off: tensor `t` needs bytes up to 18446744073709551615"),
        (one(1, &[8], 0, 0), "cut off: tensor `t` needs bytes up to 96, the file has 64"),
        (pair(0, 0), "starts at byte 96, the tensor before it ends at 160"),
        (pair(0, 32), "tensor `b` starts at byte 128, the tensor before it ends at 160"),
        (pair(32, 0), "tensor `a` starts at byte 128, the tensor before it ends at 160"),
        (small().tensor("a.weight", &[8], 0, &[0; 32]).build(), "tensor `a.weight` is given twice"),
    ];
    for (id, name) in
        [(4, "Q4_2"), (5, "Q4_3"), (31, "Q4_0_4_4"), (33, "Q4_0_8_8"), (36, "IQ4_NL_4_4"), (38, "IQ4_NL_8_8")]
    {
        rows.push((one(1, &[32], id, 0), name));
    }
    rows
}

fn splits() -> Vec<(Vec<u8>, &'static str)> {
    let set =
        |no, count, tensors| small().u32("split.no", no).u32("split.count", count).u32("split.tensors.count", tensors);
    vec![
        (
            set(1, 3, 2).build(),
            "file 2 of a split set of 3: give the first one, whose name ends in -00001-of-00003.gguf",
        ),
        (set(0, 300, 2).build(), "table of files of a split set holds 256, this model needs 300"),
        (set(0, 2, 2).build(), "says the set has 1 files, the first says 2"),
        (small().u32("split.count", 2).build(), "`split.no` is missing"),
        (small().u32("split.count", 2).u32("split.no", 0).build(), "`split.tensors.count` is missing"),
        (small().str("split.count", "2").build(), "`split.count` is string"),
    ]
}

#[test]
fn every_corruption_is_refused_with_its_sentence() {
    let rows = [formats(), counts_and_keys(), tensors(), splits()].concat();
    assert!(rows.len() >= 70, "{} rows", rows.len());
    let wrong: Vec<String> = rows
        .iter()
        .map(|(bytes, needed)| (refusal(bytes), needed))
        .filter(|(found, needed)| !found.contains(*needed))
        .map(|(found, needed)| format!("needed: {needed}\n found: {found}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn valid_files_are_accepted() {
    for version in [2, 3] {
        assert_eq!(refusal(&with(|f| f.version = version)), "accepted");
    }
    assert_eq!(refusal(&[small().build(), vec![9; 77]].concat()), "accepted", "trailing data");
    assert_eq!(refusal(&Gguf::new().str("general.architecture", "llama").build()), "accepted", "vocabulary only");
    assert_eq!(refusal(&nested(4)), "accepted");
}

#[test]
fn what_is_written_is_read() {
    let bytes = small().build();
    let mut tables = Tables::new_boxed();
    parse(&bytes, bytes.len() as u64, 0, &mut tables).unwrap();
    check_set(&mut tables).unwrap();
    let b = tables.find("b.weight").unwrap();
    assert_eq!((b.cols(), b.rows(), b.n_elements(), b.bytes, b.row_bytes()), (32, 3, 96, 102, 34));
    assert_eq!(bytes[b.offset as usize..][..102], [1; 102]);
    assert!(tables.find("c").is_none());
    let m = tables.metadata(&bytes);
    assert_eq!(m.required_str("general.architecture").unwrap(), "llama");
    assert_eq!(m.u64("llama.block_count").unwrap(), Some(2));
    assert_eq!(
        (m.f32("eps").unwrap(), m.bool("flag").unwrap(), m.u32("none").unwrap()),
        (Some(1e-5), Some(true), None)
    );
    assert_eq!(m.required_strings("tokens").unwrap().iter().collect::<Vec<_>>(), [&b"a"[..], b"", b"bc"]);
    assert_eq!(m.required_i32s("types").unwrap().iter().collect::<Vec<_>>(), [1, 2, 3]);
    for (error, needed) in [
        (m.required_u32("eps").unwrap_err(), "`eps` is f32; it must be a whole number"),
        (m.required_u32("none").unwrap_err(), "`none` is missing"),
        (m.required_f32s("types").unwrap_err(), "`types` is an array of i32; it must hold f32"),
        (m.required_str("flag").unwrap_err(), "`flag` is bool; it must be a string"),
    ] {
        assert!(error.to_string().contains(needed), "{error}");
    }
}

#[test]
fn tables_are_full_at_their_capacity_and_not_before() {
    let keys = |n| (0..n).fold(Gguf::new(), |f, i| f.u32(&format!("k{i}"), 1)).build();
    let tensors = |n| (0..n).fold(Gguf::new(), |f, i| f.tensor(&format!("t{i}"), &[1], 24, &[1])).build();
    assert_eq!(refusal(&keys(MAX_METADATA)), "accepted");
    assert!(refusal(&keys(MAX_METADATA + 1)).contains("holds 512, this model needs 513"));
    assert_eq!(refusal(&tensors(MAX_TENSORS)), "accepted");
    assert!(refusal(&tensors(MAX_TENSORS + 1)).contains("holds 4096, this model needs 4097"));
}

#[test]
fn a_file_cut_at_any_byte_is_refused_and_a_header_cut_short_asks_for_more() {
    let whole = small().build();
    let header = small().header().len();
    let mut tables = Tables::new_boxed();
    let last_data = header.next_multiple_of(32) + 32 + 102;
    for cut in 0..last_data {
        assert!(parse(&whole[..cut], cut as u64, 0, &mut tables).is_err(), "cut at {cut}");
        assert!(tables.tensors().is_empty(), "cut at {cut}");
    }
    for have in 0..header {
        match parse(&whole[..have], whole.len() as u64, 0, &mut tables) {
            Err(GgufError::NeedMore { at_least }) => assert!((have as u64) < at_least && at_least <= header as u64),
            other => panic!("{have} bytes: {other:?}"),
        }
    }
    assert!(parse(&whole[..header], whole.len() as u64, 0, &mut tables).is_ok());
}

#[test]
fn files_of_a_set_belong_together() {
    let part = |no, count, total, name: &str| {
        let split = Gguf::new().u32("split.no", no).u32("split.count", count).u32("split.tensors.count", total);
        split.tensor(name, &[8], 0, &[0; 32]).build()
    };
    let read = |files: &[Vec<u8>]| {
        let mut tables = Tables::new_boxed();
        for (i, f) in files.iter().enumerate() {
            parse(f, f.len() as u64, i as u16, &mut tables).unwrap();
        }
        check_set(&mut tables).map(|()| tables.find("b").map(|t| t.file)).map_err(|e| e.to_string())
    };
    assert_eq!(read(&[part(0, 2, 2, "a"), part(1, 2, 2, "b")]), Ok(Some(1)));
    for (files, needed) in [
        ([part(0, 2, 2, "a"), part(1, 2, 2, "a")], "tensor `a` is in file 1 and in file 2"),
        ([part(0, 2, 2, "a"), part(0, 2, 2, "b")], "in place 2 of the split set says it is number 1"),
        (
            [part(0, 2, 2, "a"), part(1, 3, 2, "b")],
            "file 2 of the split set says the set has 3 files, the first says 2",
        ),
        ([part(0, 2, 3, "a"), part(1, 2, 3, "b")], "hold 2 tensors, it should have 3"),
    ] {
        let error = read(&files).unwrap_err();
        assert!(error.contains(needed), "{error}");
    }
}

#[test]
fn random_changes_never_panic() {
    let whole = small().build();
    let header = small().header().len();
    let mut tables = Tables::new_boxed();
    let (mut state, mut accepted) = (0x9e37_79b9_7f4a_7c15u64, 0);
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..10_000 {
        let mut bytes = whole.clone();
        for _ in 0..=random(3) {
            let at = random(header);
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes[at] ^= 1 << random(8),
                2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                _ => bytes.truncate(whole.len() - random(whole.len())),
            }
            bytes.resize(bytes.len().max(header), 0);
        }
        accepted += u32::from(fuzz::check(&bytes, &mut tables));
    }
    assert!((100..9_900).contains(&accepted), "{accepted} of 10000 accepted: the changes test one side only");
}

/// The oracle must be able to fail.
#[test]
fn canary() {
    let whole = small().build();
    let mut tables = Tables::new_boxed();
    parse(&whole, whole.len() as u64, 0, &mut tables).unwrap();
    let mut tensors = tables.tensors().to_vec();
    let end = tensors[1].end();
    assert!(fuzz::in_bounds(&tensors, end).is_ok());
    assert!(fuzz::in_bounds(&tensors, end - 1).is_err());
    tensors[1].offset = tensors[0].offset + 1;
    assert!(fuzz::in_bounds(&tensors, end).unwrap_err().contains("overlaps"));
}
