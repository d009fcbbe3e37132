//! The prefix cache as a stream of bytes, so that a restart does not lose it.
//!
//! Little-endian: magic, identity of the model, numbers of the layout, number of pages; then page by page, the one used last
//! first and each after the one that it continues: which page that is (counted in the file), what is attached to it (bit by
//! bit: pages of each pool of windows, and a checkpoint), the tokens, K and V of all layers, the attachments; at the end the SHA-256 of everything before it.
//!
//! Of a model with recurrent layers, pages behind the last checkpoint of a prefix are left out: nothing goes on from them.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufReader, BufWriter, Read, Write};

use sha2::{Digest, Sha256};

use super::pages::{Pages, ROOT};
use super::scheduler::Scheduler;
use crate::bytes;
use crate::memory::NotPopulated;
use crate::model::Cache;
use crate::model::cache::{FULL, NONE, PAGE_TOKENS};

/// The first bytes; the digit is the version of what follows.
const MAGIC: [u8; 8] = *b"brimkv2\n";

/// What tells one model, and one way to keep it, from another: a digest that the caller makes.
pub type Identity = [u8; 32];

/// A saved cache that cannot be used, or written.
#[derive(Debug)]
pub enum CacheError {
    /// Reading or writing failed; a stream that ends too early is [`io::ErrorKind::UnexpectedEof`].
    Io(io::Error),
    /// It is not a saved cache, or is one of another version.
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
            CacheError::Magic => f.write_str("this is not a prefix cache of this version of brim"),
            CacheError::Identity => {
                f.write_str("the saved prefix cache belongs to another model, or to another version of its file")
            }
            CacheError::Layout => {
                f.write_str("the prefix cache was saved with another --kv-type, or by another version of brim")
            }
            CacheError::Page(page) => write!(f, "page {page} of the saved prefix cache is damaged"),
            CacheError::Memory(error) => error.fmt(f),
            CacheError::Checksum => f.write_str("the checksum of the saved prefix cache does not match: it is damaged"),
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

    /// Reads past some bytes.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut left = bytes;
        while left > 0 {
            let n = left.min(buffer.len() as u64) as usize;
            self.get(&mut buffer[..n])?;
            left -= n as u64;
        }
        Ok(())
    }

    fn get_word(&mut self) -> io::Result<u32> {
        let mut word = [0; 4];
        self.get(&mut word)?;
        Ok(u32::from_le_bytes(word))
    }
}

impl Scheduler<'_> {
    /// A digest of the numbers that must be the same.
    fn layout(&self) -> Identity {
        let words: Vec<u32> = self.core.cache.plan().fingerprint().collect();
        identity(&[bytes::bytes_of(&words)])
    }

    /// Writes what nobody is using of the prefix cache, at most `cap_bytes`, used last first; returns the number of pages.
    /// `identity` is that of the model. Writes are buffered here.
    ///
    /// # Errors
    /// [`CacheError::Io`]; what has been written is of no use then.
    pub fn save_cache(&self, out: impl Write, cap_bytes: u64, identity: &Identity) -> Result<usize, CacheError> {
        let Scheduler { core, pages, .. } = self;
        let layout = self.layout();
        let fixed = (MAGIC.len() + identity.len() + layout.len() + 4 + 32) as u64;
        let chosen = self.choose_pages(cap_bytes.saturating_sub(fixed));
        let mut out = Digested { stream: BufWriter::new(out), digest: Sha256::new() };
        out.put(&MAGIC)?;
        out.put(identity)?;
        out.put(&layout)?;
        out.put_words(&[chosen.len() as u32])?;
        for (page, parent) in &chosen {
            let attached = &pages.node(*page).attached[..pages.n_attachments()];
            let mask = (0..).zip(attached).fold(0, |mask, (list, id)| mask | u32::from(*id != NONE) << list);
            out.put_words(&[*parent, mask])?;
            out.put_words(pages.page_tokens(*page))?;
            core.cache.page(FULL, *page).try_for_each(|part| out.put(part))?;
            for (list, &id) in attached.iter().enumerate().filter(|(_, id)| **id != NONE) {
                match attached_pool(&core.cache, list) {
                    Some(pool) => core.cache.page(pool, id).try_for_each(|part| out.put(part))?,
                    None => out.put(core.cache.state(id))?,
                }
            }
        }
        let Digested { mut stream, digest } = out;
        stream.write_all(&digest.finalize())?;
        stream.flush()?;
        Ok(chosen.len())
    }

    /// The pages to save, at most `cap_bytes`, each with the index of the one that it continues: a page that can be gone on
    /// from, used last first, behind those before it that are not there yet.
    fn choose_pages(&self, cap_bytes: u64) -> Vec<(u32, u32)> {
        let Scheduler { core, pages, .. } = self;
        let bytes_of = |page: u32| {
            let node = pages.node(page);
            let attached = |list| if node.attached[list] == NONE { 0 } else { attachment_bytes(&core.cache, list) };
            let attached: u64 = (0..pages.n_attachments()).map(attached).sum();
            (2 + PAGE_TOKENS as u64) * 4 + core.cache.plan().page_bytes(FULL) as u64 + attached
        };
        let (mut chosen, mut total) = (Vec::new(), 0);
        let (mut index_of, mut page_of) = (HashMap::from([(ROOT, NONE)]), HashMap::new());
        let mut chain = Vec::new();
        for page in pages.idle_newest_first() {
            page_of.insert(pages.node(page).serial, page);
            if !pages.can_go_on_after(page) {
                continue;
            }
            let (mut end, mut bytes) = (Some(page), 0);
            chain.clear();
            while let Some(page) = end {
                bytes += bytes_of(page);
                chain.push(page);
                let parent = pages.node(page).parent;
                if total + bytes > cap_bytes || index_of.contains_key(&parent) {
                    break;
                }
                // What it continues is newer, unless somebody is using it.
                end = page_of.get(&parent).copied();
            }
            if end.is_none() || total + bytes > cap_bytes {
                continue;
            }
            total += bytes;
            for &page in chain.iter().rev() {
                let node = pages.node(page);
                let parent = index_of[&node.parent];
                index_of.insert(node.serial, chosen.len() as u32);
                chosen.push((page, parent));
            }
        }
        chosen
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
        input.get(&mut found)?;
        if found != layout {
            return Err(CacheError::Layout);
        }
        // Of each page of the file, what has become of it.
        let mut taken = Vec::new();
        let read = read_pages(&mut input, &mut self.core.cache, &mut self.pages, n_vocab, &mut taken);
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
    cache: &mut Cache<'_>,
    pages: &mut Pages<'_>,
    n_vocab: usize,
    taken: &mut Vec<(u32, u64)>,
) -> Result<(), CacheError> {
    let n_pages = input.get_word()?;
    // Of each page of the file the one before it.
    let mut parents = Vec::new();
    let is_of_use = !cache.plan().has_states() || cache.plan().n_checkpoints > 0;
    for index in 0..n_pages {
        let (parent, mask) = (input.get_word()?, input.get_word()?);
        let mut tokens = [0u32; PAGE_TOKENS];
        for token in &mut tokens {
            *token = input.get_word()?;
        }
        parents.push(parent);
        let parent = match parent {
            NONE => Some(ROOT),
            parent if parent < index => Some(taken[parent as usize].1).filter(|serial| *serial != ROOT),
            _ => return Err(CacheError::Page(index)),
        };
        if mask >> pages.n_attachments() != 0 || tokens.iter().any(|token| *token as usize >= n_vocab) {
            return Err(CacheError::Page(index));
        }
        let parent = parent.filter(|_| is_of_use);
        if parent.is_some() && pages.has_checkpoint(mask) && !pages.has_free_checkpoint() {
            // Of one prefix the last checkpoints are worth most, and come last.
            let before = |at: u32| Some(parents[at as usize]).filter(|at| *at != NONE);
            let before: Vec<u32> = std::iter::successors(before(index), |&at| before(at)).collect();
            before.iter().rev().find(|&&at| pages.give_up_checkpoint(taken[at as usize].0));
        }
        let Some(page) = parent.and_then(|parent| pages.take_saved(parent, &tokens, mask)) else {
            taken.push((NONE, ROOT));
            let attached = (0..pages.n_attachments()).filter(|list| mask >> list & 1 == 1);
            let bytes: u64 = attached.map(|list| attachment_bytes(cache, list)).sum();
            input.skip(cache.plan().page_bytes(FULL) as u64 + bytes)?;
            continue;
        };
        let node = pages.node(page);
        taken.push((page, node.serial));
        cache.each_part_mut(FULL, page, |part| input.get(part).map_err(CacheError::Io))?;
        for list in (0..pages.n_attachments()).filter(|list| mask >> list & 1 == 1) {
            match (node.attached[list], attached_pool(cache, list)) {
                (NONE, _) => input.skip(attachment_bytes(cache, list))?,
                (id, Some(pool)) => cache.each_part_mut(pool, id, |part| input.get(part).map_err(CacheError::Io))?,
                (id, None) => input.get(cache.state_mut(id)?)?,
            }
        }
    }
    Ok(())
}

/// The pool of a list of attachments; `None` if it is checkpoints.
fn attached_pool(cache: &Cache<'_>, list: usize) -> Option<usize> {
    (1 + list < cache.plan().pools.len()).then_some(1 + list)
}

/// Bytes of what a list of attachments has for one page.
fn attachment_bytes(cache: &Cache<'_>, list: usize) -> u64 {
    let plan = cache.plan();
    attached_pool(cache, list).map_or(plan.state_bytes, |pool| plan.page_bytes(pool)) as u64
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
