//! Fuzz body of the GGUF parser: any bytes are accepted or refused, never a panic, and what is accepted is in bounds.

use brim::gguf::{GgufError, Tables, TensorInfo, check_set, parse};

/// True if the bytes are accepted as a model.
pub fn check(bytes: &[u8], tables: &mut Tables) -> bool {
    let file_bytes = bytes.len() as u64;
    match parse(bytes, file_bytes, 0, tables) {
        Ok(_) => {}
        Err(GgufError::NeedMore { at_least }) => panic!("asks for {at_least} bytes of a file of {file_bytes}"),
        Err(refusal) => {
            assert!(!refusal.to_string().is_empty());
            return false;
        }
    }
    if let Err(why) = in_bounds(tables.tensors(), file_bytes) {
        panic!("{why}");
    }
    for (key, _) in tables.metadata(bytes).iter() {
        let metadata = tables.metadata(bytes);
        assert!(metadata.get(key).is_some());
        let _ = (metadata.str(key), metadata.u32(key), metadata.f32(key), metadata.strings(key), metadata.i32s(key));
        if let Ok(Some(array)) = metadata.array(key) {
            assert_eq!(array.iter().count(), array.len());
        }
    }
    check_set(tables).is_ok()
}

/// The oracle: ranges by brute force, from dimensions and block sizes.
pub fn in_bounds(tensors: &[TensorInfo], file_bytes: u64) -> Result<(), String> {
    for (i, t) in tensors.iter().enumerate() {
        let elements: u128 = t.dims.iter().map(|&d| u128::from(d)).product();
        let bytes = elements / t.ty.block_len() as u128 * t.ty.block_bytes() as u128;
        if bytes != u128::from(t.bytes) || u128::from(t.offset) + bytes > u128::from(file_bytes) {
            return Err(format!("{} of {bytes} bytes at {} is outside of {file_bytes}", t.name(), t.offset));
        }
        if let Some(other) = tensors[..i].iter().find(|o| o.offset < t.end() && t.offset < o.end()) {
            return Err(format!("{} overlaps {}", t.name(), other.name()));
        }
    }
    Ok(())
}
