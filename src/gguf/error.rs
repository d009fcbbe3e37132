//! Why a GGUF file was refused, with the numbers found and needed.

use std::fmt;

use super::foreign::Foreign;
use super::value::ValueType;
use crate::error::{Error, Exit};
use crate::quant::TensorType;

/// A key or tensor name carried in an error; long ones are cut.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(heapless::String<64, u8>);

impl Name {
    /// Takes the front of `text` that fits.
    pub fn new(text: &str) -> Self {
        let mut name = heapless::String::new();
        for c in text.chars() {
            if name.push(c).is_err() {
                break;
            }
        }
        Name(name)
    }

    /// The text, possibly cut.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_debug().fmt(f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What is wrong with a GGUF file. Offsets and lengths are bytes unless named otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the numbers of the sentence that Display writes")]
pub enum GgufError {
    /// The header goes on past the bytes given, though the file is longer: read at least so many and try again.
    NeedMore { at_least: u64 },
    /// The header is larger than any real one.
    HeaderTooLarge { needs: u64, limit: u64 },
    /// Another format.
    NotGguf(Foreign),
    /// The first GGUF version, with 32-bit counts.
    Version1,
    /// Numbers are big-endian.
    BigEndian { version: u32 },
    /// A version of the future, or a damaged one.
    UnknownVersion { version: u32 },
    /// The file ends inside the header.
    CutOff { what: &'static str, needs: u64, file_bytes: u64 },
    /// A count that the rest of the file cannot hold.
    CountTooLarge { what: &'static str, count: u64, needs: u64, left: u64 },
    /// A table of fixed capacity is too small for this model.
    TableFull { table: &'static str, needs: u64, capacity: u64 },
    /// A string longer than any real one.
    StringTooLong { what: &'static str, at: u64, bytes: u64, limit: u64 },
    /// A metadata key without a letter.
    KeyEmpty { index: u64 },
    /// A metadata key with a byte other than printable ASCII.
    KeyCharset { index: u64, byte: u8 },
    /// A metadata key given twice.
    KeyDuplicate { key: Name },
    /// A value type that GGUF does not define.
    UnknownValueType { key: Name, id: u32 },
    /// Arrays of arrays of arrays ...
    NestedTooDeep { key: Name, limit: u32 },
    /// A boolean that is neither 0 nor 1.
    BadBool { key: Name, value: u8 },
    /// `general.alignment` is not a power of two, or is too large.
    Alignment { value: u64, limit: u64 },
    /// A tensor without a name.
    TensorNameEmpty { index: u64 },
    /// A tensor name that is not UTF-8 or has control characters.
    TensorNameCharset { index: u64 },
    /// A tensor name given twice; files counted from 1.
    TensorDuplicate { name: Name, file: u16, other_file: u16 },
    /// No dimensions or too many.
    TensorDims { name: Name, n_dims: u32 },
    /// A dimension of zero, counted from 0.
    TensorDimZero { name: Name, dim: u32 },
    /// More elements or bytes than 63 bits count.
    TensorOverflow { name: Name, dims: [u64; 4] },
    /// A type id that was removed from the format.
    TypeRemoved { name: Name, id: u32 },
    /// A type id this version does not know.
    TypeUnknown { name: Name, id: u32 },
    /// Rows that are not whole blocks.
    PartialBlock { name: Name, ty: TensorType, cols: u64 },
    /// A tensor offset that is not a multiple of the alignment.
    Misaligned { name: Name, offset: u64, alignment: u64 },
    /// A tensor that starts before the one in front of it ends.
    Overlap { name: Name, start: u64, previous_end: u64 },
    /// A tensor that reaches past the end of the file.
    BeyondEnd { name: Name, end: u64, file_bytes: u64 },
    /// A metadata key that is needed and absent.
    KeyMissing { key: Name, needed: &'static str },
    /// A metadata value of another type than needed.
    WrongType { key: Name, found: ValueType, needed: &'static str },
    /// A metadata array whose elements have another type than needed.
    WrongElementType { key: Name, found: ValueType, needed: &'static str },
    /// A metadata number that does not fit what it is needed as.
    OutOfRange { key: Name, value: i128, needed: &'static str },
    /// A metadata string that is not UTF-8.
    NotUtf8 { key: Name },
    /// A later file of a split set was given; counted from 1.
    SplitNotFirst { no: u32, count: u32 },
    /// The name of the first file does not have the form of a split set's.
    SplitName { count: u32 },
    /// A file of a set says another number of files; counted from 1.
    SplitCount { file: u32, found: u64, needed: u64 },
    /// A file of a set says another number for itself; counted from 1.
    SplitOrder { found: u64, needed: u64 },
    /// The files of a set hold more or fewer tensors than it says.
    SplitTensors { found: u64, needed: u64 },
}

impl fmt::Display for GgufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use GgufError::*;
        // A flat table of sentences, longer than a screen: what is said of each is best read in one place.
        const DAMAGED: &str = "the file is damaged or was written by a faulty tool: download or convert it again";
        match self {
            NeedMore { at_least } => write!(f, "the header needs at least the first {at_least} bytes of the file"),
            HeaderTooLarge { needs, limit } => {
                write!(f, "the header needs at least {needs} bytes, the limit is {limit}: {DAMAGED}")
            }
            NotGguf(foreign) => foreign.fmt(f),
            Version1 => f.write_str("GGUF version 1 is not supported, 2 and 3 are: convert the model again"),
            BigEndian { version } => write!(
                f,
                "this is a big-endian GGUF file (version {version}), this machine needs little-endian: \
                 convert the model again without --bigendian"
            ),
            UnknownVersion { version } => {
                write!(
                    f,
                    "GGUF version {version} is not supported, 2 and 3 are: use a newer brim or convert the model again"
                )
            }
            CutOff { what, needs, file_bytes } => write!(
                f,
                "file is cut off: {what} needs bytes up to {needs}, the file has {file_bytes}: download it again"
            ),
            CountTooLarge { what, count, needs, left } => {
                write!(f, "the header claims {count} {what}, at least {needs} bytes, where {left} are left: {DAMAGED}")
            }
            TableFull { table, needs, capacity } => write!(
                f,
                "the table of {table} holds {capacity}, this model needs {needs}: this build of brim cannot load it"
            ),
            StringTooLong { what, at, bytes, limit } => {
                write!(f, "{what} at byte {at} claims {bytes} bytes, the limit is {limit}: {DAMAGED}")
            }
            KeyEmpty { index } => write!(f, "metadata key {index} is empty: {DAMAGED}"),
            KeyCharset { index, byte } => {
                write!(f, "metadata key {index} has byte {byte:#04x}, keys are printable ASCII: {DAMAGED}")
            }
            KeyDuplicate { key } => write!(f, "metadata key `{key}` is given twice: {DAMAGED}"),
            UnknownValueType { key, id } => {
                write!(f, "metadata `{key}` has value type {id}, types 0 to 12 are known: {DAMAGED}")
            }
            NestedTooDeep { key, limit } => write!(f, "metadata `{key}` nests arrays deeper than {limit}: {DAMAGED}"),
            BadBool { key, value } => {
                write!(f, "metadata `{key}` has boolean value {value}; it must be 0 or 1: {DAMAGED}")
            }
            Alignment { value, limit } => {
                write!(f, "general.alignment is {value}; it must be a power of two up to {limit}: {DAMAGED}")
            }
            TensorNameEmpty { index } => write!(f, "tensor {index} has no name: {DAMAGED}"),
            TensorNameCharset { index } => {
                write!(f, "the name of tensor {index} is not UTF-8 or has control characters: {DAMAGED}")
            }
            TensorDuplicate { name, file, other_file } if file == other_file => {
                write!(f, "tensor `{name}` is given twice: {DAMAGED}")
            }
            TensorDuplicate { name, file, other_file } => write!(
                f,
                "tensor `{name}` is in file {other_file} and in file {file} of the split set: \
                 the files do not belong together, download all of one set"
            ),
            TensorDims { name, n_dims } => {
                write!(f, "tensor `{name}` has {n_dims} dimensions; it must have 1 to 4: {DAMAGED}")
            }
            TensorDimZero { name, dim } => write!(f, "tensor `{name}` has size 0 in dimension {dim}: {DAMAGED}"),
            TensorOverflow { name, dims } => {
                write!(f, "tensor `{name}` of {dims:?} elements is larger than any file: {DAMAGED}")
            }
            TypeRemoved { name, id } => write!(
                f,
                "tensor `{name}` has type {id} ({}), which was removed from GGUF: quantise the model again",
                TensorType::removed_name(*id).unwrap_or("unnamed")
            ),
            TypeUnknown { name, id } => write!(
                f,
                "tensor `{name}` has type {id}, types up to {} are known: use a newer brim or another quantisation",
                TensorType::ID_MAX
            ),
            PartialBlock { name, ty, cols } => write!(
                f,
                "tensor `{name}` has rows of {cols} elements, {ty} needs a multiple of {}: {DAMAGED}",
                ty.block_len()
            ),
            Misaligned { name, offset, alignment } => {
                write!(f, "tensor `{name}` is at offset {offset}; it must be at a multiple of {alignment}: {DAMAGED}")
            }
            Overlap { name, start, previous_end } => write!(
                f,
                "tensor `{name}` starts at byte {start}, the tensor before it ends at {previous_end}: {DAMAGED}"
            ),
            BeyondEnd { name, end, file_bytes } => write!(
                f,
                "file is cut off: tensor `{name}` needs bytes up to {end}, the file has {file_bytes}: download it again"
            ),
            KeyMissing { key, needed } => {
                write!(
                    f,
                    "metadata `{key}` is missing; it must be {needed}: convert the model again with a current tool"
                )
            }
            WrongType { key, found, needed } => {
                write!(
                    f,
                    "metadata `{key}` is {found}; it must be {needed}: convert the model again with a current tool"
                )
            }
            WrongElementType { key, found, needed } => write!(
                f,
                "metadata `{key}` is an array of {found}; it must hold {needed}: convert the model again with a current tool"
            ),
            OutOfRange { key, value, needed } => {
                write!(f, "metadata `{key}` is {value}; it must be {needed}: {DAMAGED}")
            }
            NotUtf8 { key } => write!(f, "metadata `{key}` is not UTF-8 text: {DAMAGED}"),
            SplitNotFirst { no, count } => write!(
                f,
                "this is file {no} of a split set of {count}: give the first one, whose name ends in -00001-of-{count:05}.gguf"
            ),
            SplitName { count } => write!(
                f,
                "this is the first of a split set of {count} files, but its name does not end in -00001-of-{count:05}.gguf, \
                 so the others cannot be found: give all files their original names"
            ),
            SplitCount { file, found, needed } => write!(
                f,
                "file {file} of the split set says the set has {found} files, the first says {needed}: \
                 the files do not belong together, download all of one set"
            ),
            SplitOrder { found, needed } => write!(
                f,
                "the file in place {needed} of the split set says it is number {found}: \
                 the files were renamed or do not belong together, download all of one set"
            ),
            SplitTensors { found, needed } => write!(
                f,
                "the files of the split set hold {found} tensors, it should have {needed}: \
                 the files do not belong together, download all of one set"
            ),
        }
    }
}

impl std::error::Error for GgufError {}

impl From<GgufError> for Error {
    fn from(error: GgufError) -> Self {
        Error::new(Exit::Model, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_stay_small() {
        assert!(size_of::<GgufError>() <= 112, "{} bytes", size_of::<GgufError>());
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let name = Name::new(&"ä".repeat(40));
        assert_eq!(name.as_str().chars().count(), 32);
        assert_eq!(Name::new("a\u{1b}[0m").to_string(), "a\\u{1b}[0m");
    }

    #[test]
    fn the_exit_code_is_the_model_files() {
        assert_eq!(Error::from(GgufError::Version1).exit(), Exit::Model);
    }
}
