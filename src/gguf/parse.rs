//! From the front part of a file to the tables. Everything in a file is a claim, checked before it is believed:
//! counts against the bytes left and the capacity before any loop, ranges against the file's end.

use super::cursor::{Cursor, MAX_STRING_BYTES};
use super::error::{GgufError, Name};
use super::foreign::Foreign;
use super::metadata::{Entry, Metadata};
use super::tables::{MAX_METADATA, MAX_SPLITS, MAX_TENSORS, Part, SplitClaim, Tables, TensorInfo};
use super::value::ValueType;
use crate::quant::TensorType;
use crate::units::round_up;

/// Longest metadata key. GGUF allows 65,535 bytes; real keys stay below 80.
pub const MAX_KEY_BYTES: u64 = 1024;

/// Longest tensor name GGUF allows.
pub const MAX_NAME_BYTES: u64 = 64;

/// Deepest nesting of arrays. No known key nests at all.
pub const MAX_DEPTH: u32 = 4;

/// Largest `general.alignment`: a huge page. Beyond it nothing could gain.
pub const MAX_ALIGNMENT: u64 = 2 << 20;

/// The alignment of a file that does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The fewest bytes a metadata entry takes: key of one byte, value type, value of one byte.
const LEAST_METADATA_BYTES: u64 = 8 + 1 + 4 + 1;

/// The fewest bytes a tensor's entry takes: name of one byte, one dimension, type, offset.
const LEAST_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// Reads the header of the file in place `file` of a set into `tables`, replacing what they held of it and of later
/// files. `bytes` is the front part of the file, which has `file_bytes` in all.
///
/// # Errors
/// [`GgufError::NeedMore`] if the header runs past `bytes` though the file does not end there: read more, try again.
/// Everything else is a refusal.
///
/// # Panics
/// If an earlier file of the set has not been read.
pub fn parse(bytes: &[u8], file_bytes: u64, file: u16, tables: &mut Tables) -> Result<Part, GgufError> {
    assert!(usize::from(file) <= tables.parts.len(), "file {file} of a set is read before file {}", tables.parts.len());
    tables.rewind(usize::from(file));
    let result = parse_part(bytes, file_bytes, file, tables);
    if result.is_err() {
        tables.rewind(usize::from(file));
    }
    result
}

fn parse_part(bytes: &[u8], file_bytes: u64, file: u16, tables: &mut Tables) -> Result<Part, GgufError> {
    let mut cursor = Cursor::new(bytes, file_bytes);
    let version = version(&mut cursor, bytes)?;
    let tensors = cursor.u64("the header")?;
    let entries = cursor.u64("the header")?;
    let earlier = tables.tensors.len();
    fits("tensors", tensors.saturating_add(earlier as u64), MAX_TENSORS)?;
    fits("metadata keys", entries, MAX_METADATA)?;
    cursor.expect("metadata keys", entries, LEAST_METADATA_BYTES)?;

    let table = if file == 0 { &mut tables.metadata } else { &mut tables.later_metadata };
    for index in 0..entries {
        let entry = entry(&mut cursor, bytes, index)?;
        let key = entry.key(bytes);
        if table.iter().any(|e: &Entry| e.key(bytes) == key) {
            return Err(GgufError::KeyDuplicate { key: name_of(key) });
        }
        table.push(entry).expect("the count was compared with the capacity");
    }
    let metadata = Metadata::new(table, bytes);
    let alignment = alignment(metadata)?;
    let split = split_claim(metadata)?;

    cursor.expect("tensors", tensors, LEAST_TENSOR_BYTES)?;
    for index in 0..tensors {
        let tensor = tensor(&mut cursor, index, file, alignment)?;
        tables.tensors.push(tensor).expect("the count was compared with the capacity");
    }
    let header_bytes = cursor.at() as u64;
    let data_start = round_up(header_bytes, alignment).expect("a header in memory is far from 2^64");
    place(tables, earlier, data_start, file_bytes)?;
    tables.check_names(earlier)?;
    let part = Part { version, alignment, header_bytes, data_start, tensors_len: tensors as usize, split };
    if tables.parts.push(part).is_err() {
        return fits("files of a split set", u64::from(file) + 1, MAX_SPLITS).map(|()| part);
    }
    Ok(part)
}

fn fits(table: &'static str, needs: u64, capacity: usize) -> Result<(), GgufError> {
    let capacity = capacity as u64;
    if needs > capacity { Err(GgufError::TableFull { table, needs, capacity }) } else { Ok(()) }
}

fn name_of(bytes: &[u8]) -> Name {
    Name::new(&String::from_utf8_lossy(bytes))
}

/// Reads magic and version.
fn version(cursor: &mut Cursor<'_>, bytes: &[u8]) -> Result<u32, GgufError> {
    const MAGIC: &[u8] = b"GGUF";
    if bytes.is_empty() && cursor.left() > 0 {
        return Err(GgufError::NeedMore { at_least: 4 });
    }
    let cut_magic = !bytes.is_empty() && MAGIC.starts_with(bytes);
    if !bytes.starts_with(MAGIC) && !cut_magic {
        if bytes.starts_with(b"FUGG") {
            return Err(GgufError::BigEndian { version: bytes.get(4..8).map_or(0, |v| u32::from(v[3])) });
        }
        return Err(GgufError::NotGguf(Foreign::identify(bytes)));
    }
    cursor.take("the header", 4)?;
    match cursor.u32("the header")? {
        1 => Err(GgufError::Version1),
        version @ (2 | 3) => Ok(version),
        swapped if matches!(swapped.swap_bytes(), 1..=0xff) => {
            Err(GgufError::BigEndian { version: swapped.swap_bytes() })
        }
        version => Err(GgufError::UnknownVersion { version }),
    }
}

/// Reads one key and walks its value.
fn entry(cursor: &mut Cursor<'_>, bytes: &[u8], index: u64) -> Result<Entry, GgufError> {
    let key = cursor.string("a metadata key", MAX_KEY_BYTES)?;
    let (key_at, key_bytes) = (cursor.at() - key.len(), key.len());
    if key.is_empty() {
        return Err(GgufError::KeyEmpty { index });
    }
    if let Some(&byte) = key.iter().find(|b| !b.is_ascii_graphic()) {
        return Err(GgufError::KeyCharset { index, byte });
    }
    let ty = value_type(cursor, key)?;
    let value_at = cursor.at();
    walk_value(cursor, key, ty, 0)?;
    debug_assert!(cursor.at() <= bytes.len());
    Ok(Entry { key_at, key_bytes, ty, value_at, value_bytes: cursor.at() - value_at })
}

fn value_type(cursor: &mut Cursor<'_>, key: &[u8]) -> Result<ValueType, GgufError> {
    let id = cursor.u32("the metadata")?;
    ValueType::from_id(id).ok_or_else(|| GgufError::UnknownValueType { key: name_of(key), id })
}

/// Moves past a value, checking all of it.
fn walk_value(cursor: &mut Cursor<'_>, key: &[u8], ty: ValueType, depth: u32) -> Result<(), GgufError> {
    match ty {
        ValueType::Array => walk_array(cursor, key, depth + 1),
        ValueType::String => cursor.string("a metadata string", MAX_STRING_BYTES).map(drop),
        _ => walk_fixed(cursor, key, ty, 1),
    }
}

/// Moves past `count` values of one fixed size.
fn walk_fixed(cursor: &mut Cursor<'_>, key: &[u8], ty: ValueType, count: u64) -> Result<(), GgufError> {
    let each = ty.fixed_bytes().expect("the caller has matched strings and arrays");
    let values = cursor.take("the metadata", count.saturating_mul(each))?;
    if ty == ValueType::Bool
        && let Some(&value) = values.iter().find(|&&b| b > 1)
    {
        return Err(GgufError::BadBool { key: name_of(key), value });
    }
    Ok(())
}

fn walk_array(cursor: &mut Cursor<'_>, key: &[u8], depth: u32) -> Result<(), GgufError> {
    if depth > MAX_DEPTH {
        return Err(GgufError::NestedTooDeep { key: name_of(key), limit: MAX_DEPTH });
    }
    let ty = value_type(cursor, key)?;
    let count = cursor.u64("the metadata")?;
    cursor.expect("array elements", count, ty.least_bytes())?;
    if ty.fixed_bytes().is_some() {
        return walk_fixed(cursor, key, ty, count);
    }
    for _ in 0..count {
        walk_value(cursor, key, ty, depth)?;
    }
    Ok(())
}

fn alignment(metadata: Metadata<'_>) -> Result<u64, GgufError> {
    let value = metadata.u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !value.is_power_of_two() || value > MAX_ALIGNMENT {
        return Err(GgufError::Alignment { value, limit: MAX_ALIGNMENT });
    }
    Ok(value)
}

/// What the file says about a set; one that is alone in its set says nothing.
fn split_claim(metadata: Metadata<'_>) -> Result<Option<SplitClaim>, GgufError> {
    match metadata.u64("split.count")? {
        None | Some(0 | 1) => Ok(None),
        Some(count) => {
            fits("files of a split set", count, MAX_SPLITS)?;
            let no = metadata.required_u64("split.no")?;
            let tensors = metadata.required_u64("split.tensors.count")?;
            Ok(Some(SplitClaim { no, count, tensors }))
        }
    }
}

/// Reads one tensor's entry; its offset is still relative to the start of the data.
fn tensor(cursor: &mut Cursor<'_>, index: u64, file: u16, alignment: u64) -> Result<TensorInfo, GgufError> {
    const WHAT: &str = "the tensor table";
    let raw = cursor.string("a tensor name", MAX_NAME_BYTES)?;
    let name = std::str::from_utf8(raw).map_err(|_| GgufError::TensorNameCharset { index })?;
    if name.is_empty() {
        return Err(GgufError::TensorNameEmpty { index });
    }
    if name.chars().any(char::is_control) {
        return Err(GgufError::TensorNameCharset { index });
    }
    let n_dims = cursor.u32(WHAT)?;
    if !(1..=4).contains(&n_dims) {
        return Err(GgufError::TensorDims { name: Name::new(name), n_dims });
    }
    let mut dims = [1; 4];
    for (dim, size) in (0..n_dims).zip(&mut dims) {
        *size = cursor.u64(WHAT)?;
        if *size == 0 {
            return Err(GgufError::TensorDimZero { name: Name::new(name), dim });
        }
    }
    let ty = tensor_type(cursor.u32(WHAT)?, name)?;
    let bytes = tensor_bytes(name, ty, dims)?;
    let offset = cursor.u64(WHAT)?;
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::Misaligned { name: Name::new(name), offset, alignment });
    }
    let name = name.try_into().expect("the limit of the string is the capacity of the name");
    Ok(TensorInfo { name, dims, n_dims, ty, offset, bytes, file })
}

fn tensor_type(id: u32, name: &str) -> Result<TensorType, GgufError> {
    TensorType::from_id(id).ok_or_else(|| match TensorType::removed_name(id) {
        Some(_) => GgufError::TypeRemoved { name: Name::new(name), id },
        None => GgufError::TypeUnknown { name: Name::new(name), id },
    })
}

/// Bytes of a tensor; elements and bytes both stay below 2^63, so sums of an offset and a length stay below 2^64.
fn tensor_bytes(name: &str, ty: TensorType, dims: [u64; 4]) -> Result<u64, GgufError> {
    let product = |first: u64| {
        let all = dims[1..].iter().try_fold(first, |n, &d| n.checked_mul(d));
        all.filter(|&n| n <= i64::MAX.cast_unsigned())
    };
    let overflow = || GgufError::TensorOverflow { name: Name::new(name), dims };
    product(dims[0]).ok_or_else(overflow)?;
    if !dims[0].is_multiple_of(ty.block_len() as u64) {
        return Err(GgufError::PartialBlock { name: Name::new(name), ty, cols: dims[0] });
    }
    ty.row_bytes(dims[0]).and_then(product).ok_or_else(overflow)
}

/// Makes the offsets of this file's tensors absolute and checks their ranges against each other and the file's end.
fn place(tables: &mut Tables, first: usize, data_start: u64, file_bytes: u64) -> Result<(), GgufError> {
    for t in &mut tables.tensors[first..] {
        let start = t.offset.saturating_add(data_start);
        let end = start.saturating_add(t.bytes);
        if end > file_bytes {
            return Err(GgufError::BeyondEnd { name: Name::new(t.name()), end, file_bytes });
        }
        t.offset = start;
    }
    tables.sort_by(first, |a, b| a.offset.cmp(&b.offset));
    for pair in tables.order.windows(2) {
        let [a, b] = [&tables.tensors[usize::from(pair[0])], &tables.tensors[usize::from(pair[1])]];
        if b.offset < a.end() {
            let name = Name::new(b.name());
            return Err(GgufError::Overlap { name, start: b.offset, previous_end: a.end() });
        }
    }
    Ok(())
}
