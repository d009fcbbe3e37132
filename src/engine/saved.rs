//! The prefix cache as a stream of bytes, so that a restart does not lose it.
//!
//! Little-endian: magic, identity of the model, numbers of the layout, number of pages; then page by page, the one used last
//! first and each after the one that it continues: which page that is (counted in the file), whether the page of windows is
//! there, the tokens, K and V of all layers; at the end the SHA-256 of everything before it.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufReader, BufWriter, Read, Write};

use sha2::{Digest, Sha256};

use super::pages::{NONE, Pages, ROOT};
use super::scheduler::Scheduler;
use crate::bytes;
use crate::memory::NotPopulated;
use crate::model::Kv;
use crate::model::step::{PAGE_TOKENS, Reach};

/// The first bytes; the digit is the version of what follows.
const MAGIC: [u8; 8] = *b"brimkv1\n";

/// What tells one model, and one way to keep it, from another: a digest that the caller makes.
pub type Identity = [u8; 32];

/// A saved cache that cannot be used, or written.
#[derive(Debug)]
pub enum CacheError {
    /// Reading or writing failed; a stream that ends too early is [`io::ErrorKind::UnexpectedEof`].
    Io(io::Error),
    /// It is no saved cache, or one of another version.
    Magic,
    /// It is of another model, or the model has changed.
    Identity,
    /// Its cache was laid out otherwise: another type, or other layers.
    Layout,
    /// A page is impossible: it continues a later one, or has a token that the model lacks.
    Page(u32),
    /// The checksum does not fit.
    Checksum,
    /// Memory that was set aside for the KV cache cannot be had after all.
    Memory(NotPopulated),
}

impl From<NotPopulated> for CacheError {
    fn from(error: NotPopulated) -> Self {
        CacheError::Memory(error)
    }
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the saved prefix cache ends too early")
            }
            CacheError::Io(error) => write!(f, "the saved prefix cache: {error}"),
            CacheError::Magic => f.write_str("this is no prefix cache saved by this version"),
            CacheError::Identity => {
                f.write_str("the saved prefix cache is of another model, or of another state of it")
            }
            CacheError::Layout => {
                f.write_str("the saved prefix cache is laid out otherwise: --kv-type or version differ")
            }
            CacheError::Page(page) => write!(f, "page {page} of the saved prefix cache is damaged"),
            CacheError::Memory(error) => error.fmt(f),
            CacheError::Checksum => f.write_str("the checksum of the saved prefix cache does not fit: it is damaged"),
        }
    }
}

impl std::error::Error for CacheError {}

impl From<io::Error> for CacheError {
    fn from(error: io::Error) -> Self {
        CacheError::Io(error)
    }
}

/// A stream that is digested on its way.
struct Digested<T> {
    stream: T,
    digest: Sha256,
}

impl<T: Write> Digested<T> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.stream.write_all(bytes)
    }

    fn put_words(&mut self, words: &[u32]) -> io::Result<()> {
        words.iter().try_for_each(|word| self.put(&word.to_le_bytes()))
    }
}

impl<T: Read> Digested<T> {
    fn get(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(bytes)?;
        self.digest.update(bytes);
        Ok(())
    }

    fn get_word(&mut self) -> io::Result<u32> {
        let mut word = [0; 4];
        self.get(&mut word)?;
        Ok(u32::from_le_bytes(word))
    }
}

impl Scheduler<'_> {
    /// The numbers that must be the same.
    fn layout(&self) -> [u32; 6] {
        let (config, kv) = (&self.core.model.config, &self.core.kv);
        let window = config.window.as_ref().map_or(NONE, |window| window.len as u32);
        let numbers = [PAGE_TOKENS, config.n_layers, config.n_kv_heads, config.head_dim, kv.page_bytes()];
        let [a, b, c, d, e] = numbers.map(|n| n as u32);
        [a, b, c, d, e, window]
    }

    /// Writes what nobody is using of the prefix cache, at most `cap_bytes`, used last first; returns the number of pages.
    /// `identity` is that of the model. Writes are buffered here.
    ///
    /// # Errors
    /// [`CacheError::Io`]; what has been written is of no use then.
    pub fn save_cache(&self, out: impl Write, cap_bytes: u64, identity: &Identity) -> Result<usize, CacheError> {
        let Scheduler { core, pages, .. } = self;
        let layout = self.layout();
        let fixed = (MAGIC.len() + identity.len() + (layout.len() + 1) * 4 + 32) as u64;
        let bytes_of = |reach| core.kv.page(reach, 0).map(|part| part.len() as u64).sum::<u64>();
        let head = (2 + PAGE_TOKENS as u64) * 4;
        let (mut chosen, mut index_of, mut total) = (Vec::new(), HashMap::from([(ROOT, NONE)]), fixed);
        for page in pages.idle_newest_first() {
            let node = pages.node(page);
            let windows = if node.window == NONE { 0 } else { bytes_of(Reach::Window) };
            let bytes = head + bytes_of(Reach::All) + windows;
            // What it continues is newer, unless somebody is using it.
            let Some(&parent) = index_of.get(&node.parent) else { continue };
            if total + bytes > cap_bytes {
                break;
            }
            total += bytes;
            index_of.insert(node.serial, chosen.len() as u32);
            chosen.push((page, parent));
        }
        let mut out = Digested { stream: BufWriter::new(out), digest: Sha256::new() };
        out.put(&MAGIC)?;
        out.put(identity)?;
        out.put_words(&layout)?;
        out.put_words(&[chosen.len() as u32])?;
        for (page, parent) in &chosen {
            let window = pages.node(*page).window;
            out.put_words(&[*parent, u32::from(window != NONE)])?;
            out.put_words(pages.page_tokens(*page))?;
            core.kv.page(Reach::All, *page).try_for_each(|part| out.put(part))?;
            if window != NONE {
                core.kv.page(Reach::Window, window).try_for_each(|part| out.put(part))?;
            }
        }
        let Digested { mut stream, digest } = out;
        stream.write_all(&digest.finalize())?;
        stream.flush()?;
        Ok(chosen.len())
    }

    /// Takes over what [`Scheduler::save_cache`] has written, as much as there is room for; returns the number of pages.
    /// Reads are buffered here.
    ///
    /// # Errors
    /// What is wrong with it; nothing of it is used then.
    pub fn load_cache(&mut self, input: impl Read, identity: &Identity) -> Result<usize, CacheError> {
        let layout = self.layout();
        let n_vocab = self.core.model.weights.n_vocab();
        let mut input = Digested { stream: BufReader::new(input), digest: Sha256::new() };
        let (mut magic, mut found) = ([0; MAGIC.len()], Identity::default());
        input.get(&mut magic)?;
        if magic != MAGIC {
            return Err(CacheError::Magic);
        }
        input.get(&mut found)?;
        if found != *identity {
            return Err(CacheError::Identity);
        }
        for number in layout {
            if input.get_word()? != number {
                return Err(CacheError::Layout);
            }
        }
        // Of each page of the file, what has become of it.
        let mut taken = Vec::new();
        let read = read_pages(&mut input, &mut self.core.kv, &mut self.pages, n_vocab, &mut taken);
        let read = read.and_then(|()| {
            let (mut sum, mut more) = ([0; 32], [0; 1]);
            input.stream.read_exact(&mut sum)?;
            let is_end = input.stream.read(&mut more)? == 0;
            if is_end && sum == *input.digest.finalize() { Ok(()) } else { Err(CacheError::Checksum) }
        });
        // The one used last is given back last.
        let mut n = 0;
        for &(page, _) in taken.iter().rev().filter(|(page, _)| *page != NONE) {
            if read.is_err() {
                self.pages.withdraw(page);
            } else {
                n += 1;
            }
            self.pages.give_back(page);
        }
        read.map(|()| n)
    }
}

/// Reads all pages, those that there is room for into their places. `taken`: page, owned here, and serial of each.
fn read_pages(
    input: &mut Digested<impl Read>,
    kv: &mut Kv<'_>,
    pages: &mut Pages<'_>,
    n_vocab: usize,
    taken: &mut Vec<(u32, u64)>,
) -> Result<(), CacheError> {
    let n_pages = input.get_word()?;
    let mut skipped = vec![0; kv.page_bytes()];
    for index in 0..n_pages {
        let (parent, has_window) = (input.get_word()?, input.get_word()?);
        let mut tokens = [0u32; PAGE_TOKENS];
        for token in &mut tokens {
            *token = input.get_word()?;
        }
        let parent = match parent {
            NONE => Some(ROOT),
            parent if parent < index => Some(taken[parent as usize].1).filter(|serial| *serial != ROOT),
            _ => return Err(CacheError::Page(index)),
        };
        if has_window > 1 || tokens.iter().any(|token| *token as usize >= n_vocab) {
            return Err(CacheError::Page(index));
        }
        let place = parent.and_then(|parent| pages.take_saved(parent, &tokens, has_window == 1));
        let (page, window, serial) = place.unwrap_or((NONE, NONE, ROOT));
        taken.push((page, serial));
        for (reach, page, is_there) in [(Reach::All, page, true), (Reach::Window, window, has_window == 1)] {
            if is_there {
                kv.each_layer_mut(reach, page, |part| input.get(part.unwrap_or(&mut skipped)).map_err(CacheError::Io))?;
            }
        }
    }
    Ok(())
}

/// The identity of a model by what tells its files apart.
pub fn identity(parts: &[&[u8]]) -> Identity {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(bytes::bytes_of(&[part.len() as u64]));
        digest.update(part);
    }
    digest.finalize().into()
}
