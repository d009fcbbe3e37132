//! A tiny GGUF writer: valid files by default, and every field can be made wrong.
#![allow(dead_code)]

/// A file in the making. Counts default to what was added.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    pub n_tensors: Option<u64>,
    pub n_metadata: Option<u64>,
    pub alignment: usize,
    metadata: Vec<u8>,
    metadata_len: u64,
    tensors: Vec<u8>,
    tensors_len: u64,
    data: Vec<u8>,
}

/// A length-prefixed string.
pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

impl Gguf {
    pub fn new() -> Self {
        Gguf {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_metadata: None,
            alignment: 32,
            metadata: Vec::new(),
            metadata_len: 0,
            tensors: Vec::new(),
            tensors_len: 0,
            data: Vec::new(),
        }
    }

    /// Metadata with key, value type and value as raw bytes.
    pub fn raw(mut self, key: &[u8], ty: u32, value: &[u8]) -> Self {
        self.metadata.extend(string(key));
        self.metadata.extend(ty.to_le_bytes());
        self.metadata.extend(value);
        self.metadata_len += 1;
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key.as_bytes(), 4, &value.to_le_bytes())
    }

    pub fn u64(self, key: &str, value: u64) -> Self {
        self.raw(key.as_bytes(), 10, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key.as_bytes(), 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key.as_bytes(), 7, &[u8::from(value)])
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        self.raw(key.as_bytes(), 8, &string(value.as_bytes()))
    }

    /// An array of `len` elements of type `ty`, given as raw bytes.
    pub fn array(self, key: &str, ty: u32, len: u64, elements: &[u8]) -> Self {
        let value = [&ty.to_le_bytes()[..], &len.to_le_bytes(), elements].concat();
        self.raw(key.as_bytes(), 9, &value)
    }

    pub fn strings(self, key: &str, values: &[&str]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|v| string(v.as_bytes())).collect();
        self.array(key, 8, values.len() as u64, &elements)
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 6, values.len() as u64, &elements)
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 5, values.len() as u64, &elements)
    }

    /// A tensor at the next aligned offset, with its data.
    pub fn tensor(mut self, name: &str, dims: &[u64], ty: u32, data: &[u8]) -> Self {
        let offset = self.data.len() as u64;
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        self.raw_tensor(name.as_bytes(), dims.len() as u32, dims, ty, offset)
    }

    /// A tensor's entry alone, field by field.
    pub fn raw_tensor(mut self, name: &[u8], n_dims: u32, dims: &[u64], ty: u32, offset: u64) -> Self {
        self.tensors.extend(string(name));
        self.tensors.extend(n_dims.to_le_bytes());
        self.tensors.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        self.tensors.extend(ty.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensors_len += 1;
        self
    }

    /// The bytes before tensor data.
    pub fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors_len).to_le_bytes());
        out.extend(self.n_metadata.unwrap_or(self.metadata_len).to_le_bytes());
        out.extend(&self.metadata);
        out.extend(&self.tensors);
        out
    }

    /// The whole file.
    pub fn build(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

/// A file with further keys in front of its own, each with its type.
#[allow(dead_code)]
pub fn with_keys(model: &[u8], keys: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
    let written =
        |key: &str, ty: u32, value: &[u8]| [string(key.as_bytes()), ty.to_le_bytes().into(), value.to_vec()].concat();
    let mut more: Vec<u8> = keys.iter().flat_map(|(key, ty, value)| written(key, *ty, value)).collect();
    // So long that tensors stay aligned.
    let comment = |n: usize| written("general.comment", 8, &string(&vec![b' '; n]));
    let fill = (more.len() + comment(0).len()).next_multiple_of(32) - (more.len() + comment(0).len());
    more.extend(comment(fill));
    // Magic, version, number of tensors, number of keys, keys.
    let n_keys = u64::from_le_bytes(model[16..24].try_into().expect("eight bytes")) + 1 + keys.len() as u64;
    [&model[..16], &n_keys.to_le_bytes(), &more, &model[24..]].concat()
}
