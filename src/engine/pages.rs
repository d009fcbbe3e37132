//! Whose pages of the KV cache are whose, and which prefixes they hold.
//!
//! A page has as many owners as sequences that have it in their [`Table`]. A full page of a sequence can be *published*: it
//! is then found by what is in it, its tokens and all before them, and outlives its owners until its place is needed. What
//! nobody has owned for longest goes first.
//!
//! Layers with a sliding window have pages of their own ([`Reach::Window`]), which a sequence gives back once the window has
//! moved on. A published page of all positions knows the page of windows with the same tokens, as long as there is one. A
//! prefix can be continued where the pages of the last window before its end are still there.

use crate::model::step::{PAGE_TOKENS, Reach};

/// No page.
pub(super) const NONE: u32 = u32::MAX;

/// What stands before the first page of every sequence.
pub(super) const ROOT: u64 = 0;

/// The pages of one reach: counts of owners, and lists of those that have none.
struct Pool {
    owners: Vec<u32>,
    /// Hold nothing.
    free: Vec<u32>,
    /// Published and without owners, a ring through `links`, oldest first; its head is the last link.
    links: Vec<[u32; 2]>,
    n_idle: usize,
}

const PREV: usize = 0;
const NEXT: usize = 1;

impl Pool {
    fn new(n: usize) -> Pool {
        let mut links = vec![[NONE; 2]; n];
        links.push([n as u32; 2]);
        // Handed out in order.
        Pool { owners: vec![0; n], free: (0..n as u32).rev().collect(), links, n_idle: 0 }
    }

    fn head(&self) -> u32 {
        (self.links.len() - 1) as u32
    }

    fn oldest(&self) -> Option<u32> {
        let first = self.links[self.head() as usize][NEXT];
        (first != self.head()).then_some(first)
    }

    /// The last of those without owners.
    fn push_idle(&mut self, page: u32) {
        let (head, last) = (self.head(), self.links[self.head() as usize][PREV]);
        self.links[page as usize] = [last, head];
        self.links[last as usize][NEXT] = page;
        self.links[head as usize][PREV] = page;
        self.n_idle += 1;
    }

    fn unlink_idle(&mut self, page: u32) {
        let [prev, next] = std::mem::replace(&mut self.links[page as usize], [NONE; 2]);
        self.links[prev as usize][NEXT] = next;
        self.links[next as usize][PREV] = prev;
        self.n_idle -= 1;
    }

    fn available(&self) -> usize {
        self.free.len() + self.n_idle
    }

    /// One more owner.
    fn retain(&mut self, page: u32) {
        if self.owners[page as usize] == 0 {
            self.unlink_idle(page);
        }
        self.owners[page as usize] += 1;
    }

    /// One owner less; a page without any is kept if it is published.
    fn release(&mut self, page: u32, is_published: bool) {
        self.owners[page as usize] -= 1;
        if self.owners[page as usize] == 0 {
            if is_published { self.push_idle(page) } else { self.free.push(page) }
        }
    }

    /// No longer published.
    fn withdraw(&mut self, page: u32) {
        if self.owners[page as usize] == 0 {
            self.unlink_idle(page);
            self.free.push(page);
        }
    }
}

/// What is known of a published page; its tokens are in [`Pages::tokens`].
#[derive(Clone, Copy)]
pub(super) struct Node {
    /// Its number, never given twice; [`ROOT`] if it is not published.
    pub serial: u64,
    /// That of the page before it.
    pub parent: u64,
    /// The page of windows with the same tokens.
    pub window: u32,
    /// The next of its bucket.
    next: u32,
}

const UNPUBLISHED: Node = Node { serial: ROOT, parent: ROOT, window: NONE, next: NONE };

/// All pages.
pub(super) struct Pages<'a> {
    pools: [Pool; 2],
    /// Positions that a token sees in layers with a window; `usize::MAX` without such layers.
    window: usize,
    nodes: Vec<Node>,
    /// `[n_pages][PAGE_TOKENS]`; empty where nothing is published.
    tokens: &'a mut [u32],
    /// First nodes of the buckets, by hash; a power of two of them.
    buckets: Vec<u32>,
    /// The published page that a page of windows belongs to.
    window_of: Vec<u32>,
    serials: u64,
}

/// The pages of one sequence.
pub(super) struct Table {
    /// In order, of either reach; [`NONE`] where they have been given back. As long as the longest sequence.
    pages: [Vec<u32>; 2],
    /// How many there are.
    len: usize,
    /// The first page of windows that has not been given back.
    first_window: usize,
}

impl Table {
    /// Of a sequence of up to `ctx` positions.
    pub fn new(ctx: usize, has_windows: bool) -> Table {
        let n = ctx.div_ceil(PAGE_TOKENS);
        Table { pages: [vec![NONE; n], vec![NONE; if has_windows { n } else { 0 }]], len: 0, first_window: 0 }
    }

    /// Pages of all positions that it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The tables of a pass.
    pub fn pages(&self) -> [&[u32]; 2] {
        [&self.pages[0], &self.pages[1]]
    }

    fn has_windows(&self) -> bool {
        !self.pages[1].is_empty()
    }
}

impl<'a> Pages<'a> {
    /// So many pages of each reach; `tokens` has room for those of all full pages, or for none if nothing is published.
    pub fn new(n_pages: [usize; 2], window: usize, tokens: &'a mut [u32]) -> Pages<'a> {
        let n_nodes = tokens.len() / PAGE_TOKENS;
        assert!(n_nodes == 0 || n_nodes == n_pages[0]);
        Pages {
            pools: n_pages.map(Pool::new),
            window,
            nodes: vec![UNPUBLISHED; n_pages[0]],
            tokens,
            buckets: vec![NONE; n_nodes.next_power_of_two()],
            window_of: vec![NONE; n_pages[1]],
            serials: ROOT,
        }
    }

    /// Pages of all positions: those that sequences have, those that are kept, and all.
    pub fn counts(&self) -> [usize; 3] {
        let pool = &self.pools[0];
        [pool.owners.len() - pool.available(), pool.n_idle, pool.owners.len()]
    }

    /// Pages of all positions that can still be had.
    pub fn available(&self) -> usize {
        self.pools[0].available()
    }

    /// A page that holds nothing any more, owned once.
    fn take(&mut self, reach: Reach) -> Option<u32> {
        let page = match (self.pools[reach as usize].free.pop(), reach) {
            (Some(page), _) => page,
            (None, Reach::All) => {
                let page = self.pools[0].oldest()?;
                self.withdraw(page);
                self.pools[0].free.pop()?
            }
            (None, Reach::Window) => {
                let page = self.pools[1].oldest()?;
                self.detach_window(self.window_of[page as usize]);
                self.pools[1].free.pop()?
            }
        };
        self.pools[reach as usize].owners[page as usize] = 1;
        Some(page)
    }

    fn release(&mut self, reach: Reach, page: u32) {
        let is_published = match reach {
            Reach::All => self.nodes[page as usize].serial != ROOT,
            Reach::Window => self.window_of[page as usize] != NONE,
        };
        self.pools[reach as usize].release(page, is_published);
    }

    /// Gives a table the pages for `n` more positions after the first `position`, and takes back those that its windows have
    /// passed. False if there are not enough; what it has then is still its own.
    pub fn extend(&mut self, table: &mut Table, position: usize, n: usize) -> bool {
        self.release_passed(table, position);
        while table.len < (position + n).div_ceil(PAGE_TOKENS) {
            let Some(page) = self.take(Reach::All) else { return false };
            if table.has_windows() {
                let Some(window) = self.take(Reach::Window) else {
                    self.release(Reach::All, page);
                    return false;
                };
                table.pages[1][table.len] = window;
            }
            table.pages[0][table.len] = page;
            table.len += 1;
        }
        true
    }

    fn release_passed(&mut self, table: &mut Table, position: usize) {
        if !table.has_windows() {
            return;
        }
        let first = (position + 1).saturating_sub(self.window) / PAGE_TOKENS;
        while table.first_window < first.min(table.len) {
            self.release_window(table, table.first_window);
            table.first_window += 1;
        }
    }

    fn release_window(&mut self, table: &mut Table, index: usize) {
        let page = std::mem::replace(&mut table.pages[1][index], NONE);
        if page != NONE {
            self.release(Reach::Window, page);
        }
    }

    /// Whether tokens that continue after the first `position` find all that their windows see.
    pub fn holds(&self, table: &Table, position: usize) -> bool {
        !table.has_windows()
            || position == 0
            || table.first_window <= (position + 1).saturating_sub(self.window) / PAGE_TOKENS
    }

    /// Takes back all pages after those of the first `position` positions.
    pub fn truncate(&mut self, table: &mut Table, position: usize) {
        // From the end, so that of two pages without owners the one that depends on the other goes first.
        while table.len > position.div_ceil(PAGE_TOKENS) {
            table.len -= 1;
            if table.has_windows() {
                self.release_window(table, table.len);
            }
            let page = std::mem::replace(&mut table.pages[0][table.len], NONE);
            self.release(Reach::All, page);
        }
        table.first_window = table.first_window.min(table.len);
    }

    /// The tokens of a published page.
    pub fn page_tokens(&self, page: u32) -> &[u32] {
        &self.tokens[page as usize * PAGE_TOKENS..][..PAGE_TOKENS]
    }

    fn bucket(&self, parent: u64, tokens: &[u32]) -> usize {
        // FNV-1a over words (public domain, Fowler, Noll and Vo), its upper half folded in.
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let hash = tokens
            .iter()
            .fold(0xcbf2_9ce4_8422_2325 ^ parent, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(PRIME));
        (hash ^ hash >> 32) as usize & (self.buckets.len() - 1)
    }

    /// The published page with these tokens after `parent`.
    fn find(&self, parent: u64, tokens: &[u32]) -> Option<u32> {
        let mut page = self.buckets[self.bucket(parent, tokens)];
        while page != NONE {
            let node = &self.nodes[page as usize];
            if node.parent == parent && self.page_tokens(page) == tokens {
                return Some(page);
            }
            page = node.next;
        }
        None
    }

    /// Publishes page `index` of a table, which holds `tokens` after `parent`, and returns its serial. If another page with
    /// the same is there already, the table gets that one instead.
    pub fn publish(&mut self, table: &mut Table, index: usize, parent: u64, tokens: &[u32]) -> u64 {
        let (mine, my_window) = (table.pages[0][index], if table.has_windows() { table.pages[1][index] } else { NONE });
        let page = match self.find(parent, tokens) {
            Some(page) if page != mine => {
                self.pools[0].retain(page);
                table.pages[0][index] = page;
                self.release(Reach::All, mine);
                page
            }
            Some(page) => page,
            None => {
                self.insert(mine, parent, tokens);
                mine
            }
        };
        let window = self.nodes[page as usize].window;
        if my_window != NONE && window == NONE {
            (self.nodes[page as usize].window, self.window_of[my_window as usize]) = (my_window, page);
        } else if my_window != NONE && window != my_window {
            self.pools[1].retain(window);
            table.pages[1][index] = window;
            self.release(Reach::Window, my_window);
        }
        self.nodes[page as usize].serial
    }

    fn insert(&mut self, page: u32, parent: u64, tokens: &[u32]) {
        self.tokens[page as usize * PAGE_TOKENS..][..PAGE_TOKENS].copy_from_slice(tokens);
        let bucket = self.bucket(parent, tokens);
        self.serials += 1;
        let next = std::mem::replace(&mut self.buckets[bucket], page);
        self.nodes[page as usize] = Node { serial: self.serials, parent, window: NONE, next };
    }

    fn detach_window(&mut self, page: u32) {
        let window = std::mem::replace(&mut self.nodes[page as usize].window, NONE);
        if window != NONE {
            self.window_of[window as usize] = NONE;
            self.pools[1].withdraw(window);
        }
    }

    /// A page is no longer found; without owners it is free.
    pub fn withdraw(&mut self, page: u32) {
        let Node { serial, parent, next, .. } = self.nodes[page as usize];
        if serial == ROOT {
            return;
        }
        self.detach_window(page);
        let bucket = self.bucket(parent, self.page_tokens(page));
        if self.buckets[bucket] == page {
            self.buckets[bucket] = next;
        } else {
            let mut before = self.buckets[bucket] as usize;
            while self.nodes[before].next != page {
                before = self.nodes[before].next as usize;
            }
            self.nodes[before].next = next;
        }
        self.nodes[page as usize] = UNPUBLISHED;
        self.pools[0].withdraw(page);
    }

    /// Published pages without owners, the one that was given back last first.
    pub fn idle_newest_first(&self) -> impl Iterator<Item = u32> + '_ {
        let pool = &self.pools[0];
        let step = |page: &u32| Some(pool.links[*page as usize][PREV]);
        std::iter::successors(step(&pool.head()), step).take_while(|page| *page != pool.head())
    }

    /// What is known of a page.
    pub fn node(&self, page: u32) -> Node {
        self.nodes[page as usize]
    }

    /// A page for `tokens` after `parent`, published and owned, the page of windows that goes with it, if there is to be one,
    /// and its serial; `None` if it is there already or there is no free page for it.
    pub fn take_saved(&mut self, parent: u64, tokens: &[u32], has_window: bool) -> Option<(u32, u32, u64)> {
        if self.find(parent, tokens).is_some() || self.pools[0].free.is_empty() {
            return None;
        }
        let page = self.take(Reach::All)?;
        self.insert(page, parent, tokens);
        let mut window = NONE;
        if has_window && let Some(free) = self.pools[1].free.pop() {
            window = free;
            // Published and without owners.
            self.pools[1].push_idle(window);
            (self.nodes[page as usize].window, self.window_of[window as usize]) = (window, page);
        }
        Some((page, window, self.nodes[page as usize].serial))
    }

    /// Ends the ownership that [`Pages::take_saved`] has begun.
    pub fn give_back(&mut self, page: u32) {
        let window = self.nodes[page as usize].window;
        if window != NONE && self.pools[1].owners[window as usize] == 0 {
            // As new as the page itself.
            self.pools[1].unlink_idle(window);
            self.pools[1].push_idle(window);
        }
        self.release(Reach::All, page);
    }

    /// Nothing of a table's pages is found any more.
    pub fn withdraw_all(&mut self, table: &Table) {
        for index in 0..table.len {
            self.withdraw(table.pages[0][index]);
        }
    }

    /// Appends to a table, which holds whole pages up to `serial`, as many published pages as its sequence can continue
    /// after, of those that hold the next of `tokens`, whole pages of the sequence from its start. Returns the serial of the last.
    pub fn adopt(&mut self, table: &mut Table, serial: u64, tokens: &[u32]) -> u64 {
        let (held, mut parent, mut end) = (table.len, serial, table.len);
        for tokens in tokens.chunks_exact(PAGE_TOKENS).skip(held) {
            let Some(page) = self.find(parent, tokens) else { break };
            table.pages[0][end] = page;
            parent = self.nodes[page as usize].serial;
            end += 1;
        }
        // The first page of the windows of the token after so many pages.
        let first_seen = |end: usize| (end * PAGE_TOKENS + 1).saturating_sub(self.window) / PAGE_TOKENS;
        if table.has_windows() {
            let is_there = |index: usize| match index < held {
                true => table.pages[1][index] != NONE,
                false => self.nodes[table.pages[0][index] as usize].window != NONE,
            };
            while end > held && !(first_seen(end)..end).all(is_there) {
                end -= 1;
            }
        }
        let first = first_seen(end);
        for index in held..end {
            let page = table.pages[0][index];
            self.pools[0].retain(page);
            let window = self.nodes[page as usize].window;
            if table.has_windows() && index >= first {
                self.pools[1].retain(window);
                table.pages[1][index] = window;
            }
        }
        if end > held {
            (table.len, parent) = (end, self.nodes[table.pages[0][end - 1] as usize].serial);
            if table.has_windows() {
                self.release_passed(table, end * PAGE_TOKENS);
            }
            return parent;
        }
        serial
    }
}

#[cfg(test)]
mod tests;
