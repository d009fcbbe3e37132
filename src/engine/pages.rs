//! Whose pages of the KV cache are whose, and which prefixes they hold.
//!
//! A page has as many owners as sequences that have it in their [`Table`]. A full page of a sequence can be *published*: it
//! is then found by what is in it, its tokens and all before them, and outlives its owners until its place is needed. What
//! nobody has owned for longest goes first.
//!
//! Pages lie in pools ([`CachePlan`]). Layers with a sliding window have pools of their own, whose pages a sequence gives back
//! once the window has moved on. Recurrent layers have states: one is every running sequence's own, the others are
//! *checkpoints*, copies of it at ends of pages: of all pages if there are enough, else of those that [`Stops`] names. A
//! published page of the full pool knows the pages of windows with the same
//! tokens and the checkpoint at its end, its *attachments*, as long as they are there. A prefix can be continued where the
//! pages of the last window before its end and, with recurrent layers, the checkpoint at its end are still there.

use super::stops::{Stop, Stops};
use crate::model::SequenceSlice;
use crate::model::cache::{CachePlan, FULL, NONE, PAGE_TOKENS, POOLS_MAX, Window};

/// What stands before the first page of every sequence.
pub(super) const ROOT: u64 = 0;

/// The pages of one pool, or checkpoints: counts of owners, and lists of those that have none.
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
    /// Of so many, of which the first few are never handed out.
    fn new(n: usize, n_reserved: usize) -> Pool {
        let mut links = vec![[NONE; 2]; n];
        links.push([n as u32; 2]);
        let owners = (0..n).map(|i| u32::from(i < n_reserved)).collect();
        // Handed out in order.
        Pool { owners, free: (n_reserved as u32..n as u32).rev().collect(), links, n_idle: 0 }
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

    /// One that is free, owned once.
    fn take_free(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.owners[page as usize] = 1;
        Some(page)
    }

    /// No longer published.
    fn withdraw(&mut self, page: u32) {
        if self.owners[page as usize] == 0 {
            self.unlink_idle(page);
            self.free.push(page);
        }
    }
}

/// Most pools of what is attached to published pages: those of windows, and checkpoints.
const ATTACHMENTS_MAX: usize = POOLS_MAX;

/// What is known of a published page; its tokens are in [`Pages::tokens`].
#[derive(Clone, Copy)]
pub(super) struct Node {
    /// Its number, never given twice; [`ROOT`] if it is not published.
    pub serial: u64,
    /// That of the page before it.
    pub parent: u64,
    /// The pages of windows with the same tokens, and the checkpoint at its end; [`NONE`] where there is none.
    pub attached: [u32; ATTACHMENTS_MAX],
    /// The next of its bucket.
    next: u32,
}

const UNPUBLISHED: Node = Node { serial: ROOT, parent: ROOT, attached: [NONE; ATTACHMENTS_MAX], next: NONE };

/// What goes with the pages of the full pool.
struct Attachment {
    pool: Pool,
    /// Which positions tokens see in the layers of these pages; `None`: it is checkpoints.
    window: Option<Window>,
    /// The published page that each belongs to.
    page_of: Vec<u32>,
}

impl Attachment {
    fn new(pool: Pool, window: Option<Window>) -> Attachment {
        Attachment { page_of: vec![NONE; pool.owners.len()], pool, window }
    }

    /// The first page of a sequence that a token at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window.unwrap_or(Window::ALL).first(position) / PAGE_TOKENS
    }
}

/// All pages.
pub(super) struct Pages<'a> {
    full: Pool,
    /// Windows in the order of their pools, then checkpoints.
    attachments: heapless::Vec<Attachment, ATTACHMENTS_MAX>,
    nodes: Vec<Node>,
    /// `[n_pages][PAGE_TOKENS]`; empty where nothing is published.
    tokens: &'a mut [u32],
    /// First nodes of the buckets, by hash; a power of two of them.
    buckets: Vec<u32>,
    serials: u64,
    /// Every page can have a checkpoint.
    keeps_all: bool,
    n_checkpoints: usize,
    /// Checkpoints that have been attached to a page so far.
    n_taken: u64,
}

/// The checkpoint that a sequence has left while generating, in place of which it leaves the next.
#[derive(Clone, Copy)]
struct Rolling {
    /// The page of the sequence at whose end it is.
    index: usize,
    id: u32,
    /// That of the page it has been published with.
    serial: u64,
}

/// What a sequence has taken over of what others have published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Adopted {
    /// That of the last page.
    pub serial: u64,
    /// Pages from the sequence's beginning that others have computed, even if it cannot continue after them.
    pub shared: usize,
}

/// The pages of one sequence, and its state.
pub(super) struct Table {
    /// In order, of each pool and of checkpoints; [`NONE`] where they have been given back. As long as the longest sequence.
    pages: Vec<Vec<u32>>,
    /// How many there are.
    len: usize,
    /// Of each pool of windows, the first page that has not been given back.
    first_kept: [usize; ATTACHMENTS_MAX],
    /// Its own state; [`NONE`] without recurrent layers.
    state: u32,
    /// The position that its own state stands at.
    state_position: usize,
    /// The checkpoint that it goes on from instead, held until a pass has done so.
    resumed: u32,
    rolling: Option<Rolling>,
    has_checkpoints: bool,
}

impl Table {
    /// Of the sequence in slot `slot`, of up to `ctx` positions.
    pub fn new(plan: &CachePlan, ctx: usize, slot: usize) -> Table {
        let n = ctx.div_ceil(PAGE_TOKENS);
        let n_lists = plan.pools.len() + usize::from(plan.has_states());
        Table {
            pages: vec![vec![NONE; n]; n_lists],
            len: 0,
            first_kept: [0; ATTACHMENTS_MAX],
            state: if plan.has_states() { slot as u32 } else { NONE },
            state_position: 0,
            resumed: NONE,
            rolling: None,
            has_checkpoints: plan.has_states(),
        }
    }

    /// Pages of all positions that it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The checkpoint of its own that it goes on from at `position`, by its page.
    fn stands_on(&self, position: usize) -> Option<usize> {
        let is_elsewhere = self.state_position != position && self.resumed == NONE;
        (position / PAGE_TOKENS).checked_sub(1).filter(|_| is_elsewhere)
    }

    /// Its part of a pass: `n` tokens from `position` on, the first of which is token `first` of the pass.
    pub fn slice(&self, first: usize, n: usize, position: usize) -> SequenceSlice<'_> {
        let n_pools = self.pages.len() - usize::from(self.has_checkpoints);
        let (pages, checkpoints) = self.pages.split_at(n_pools);
        let checkpoints = checkpoints.first().map_or(&[][..], |checkpoints| checkpoints);
        let state_before = match position {
            0 => NONE,
            _ if self.state_position == position || !self.has_checkpoints => self.state,
            _ if self.resumed != NONE => self.resumed,
            _ => checkpoints[position / PAGE_TOKENS - 1],
        };
        assert!(position == 0 || !self.has_checkpoints || state_before != NONE, "no state at position {position}");
        SequenceSlice { first, n, position, pages, state_before, state: self.state, checkpoints }
    }
}

impl<'a> Pages<'a> {
    /// The pages and states of a cache; `tokens` has room for those of all full pages, or for none if nothing is published.
    pub fn new(plan: &CachePlan, tokens: &'a mut [u32]) -> Pages<'a> {
        let (n_nodes, n_pages) = (tokens.len() / PAGE_TOKENS, plan.pools[FULL].n_pages);
        assert!(n_nodes == 0 || n_nodes == n_pages);
        let mut attachments = heapless::Vec::new();
        for pool in &plan.pools[1..] {
            let windows = Attachment::new(Pool::new(pool.n_pages, 0), pool.window);
            attachments.push(windows).ok().expect("there are fewer pools of windows than pools");
        }
        if plan.has_states() {
            let checkpoints = Attachment::new(Pool::new(plan.n_states(), plan.n_live_states), None);
            attachments.push(checkpoints).ok().expect("ATTACHMENTS_MAX leaves room for checkpoints");
        }
        Pages {
            full: Pool::new(n_pages, 0),
            attachments,
            nodes: vec![UNPUBLISHED; n_pages],
            tokens,
            buckets: vec![NONE; n_nodes.next_power_of_two()],
            serials: ROOT,
            keeps_all: plan.has_checkpoint_for_every_page(),
            n_checkpoints: plan.n_checkpoints,
            n_taken: 0,
        }
    }

    /// Pages of all positions: those that sequences have, those that are kept, and all.
    pub fn counts(&self) -> [usize; 3] {
        let pool = &self.full;
        [pool.owners.len() - pool.available(), pool.n_idle, pool.owners.len()]
    }

    /// Checkpoints that there are, that hold a state, and that have been published so far.
    pub fn checkpoint_counts(&self) -> [u64; 3] {
        let free = self.checkpoints().map_or(0, |list| self.attachments[list].pool.free.len());
        [self.n_checkpoints as u64, (self.n_checkpoints - free) as u64, self.n_taken]
    }

    /// Pages of all positions that can still be had.
    pub fn available(&self) -> usize {
        self.full.available()
    }

    /// What is attached to pages: windows, then checkpoints.
    pub fn n_attachments(&self) -> usize {
        self.attachments.len()
    }

    /// A page that holds nothing any more, owned once.
    fn take(&mut self) -> Option<u32> {
        if self.full.free.is_empty() {
            self.withdraw(self.full.oldest()?);
        }
        self.full.take_free()
    }

    /// The same of what is attached to pages.
    fn take_attached(&mut self, list: usize) -> Option<u32> {
        let Attachment { pool, page_of, .. } = &self.attachments[list];
        if pool.free.is_empty() {
            let page = page_of[pool.oldest()? as usize];
            self.detach(list, page);
        }
        self.attachments[list].pool.take_free()
    }

    fn release(&mut self, page: u32) {
        let is_published = self.nodes[page as usize].serial != ROOT;
        self.full.release(page, is_published);
    }

    /// Gives up what a table has in place `index` of a list of attachments.
    fn release_attached(&mut self, table: &mut Table, list: usize, index: usize) {
        let id = std::mem::replace(&mut table.pages[1 + list][index], NONE);
        if id != NONE {
            self.release_id(list, id);
        }
    }

    fn release_id(&mut self, list: usize, id: u32) {
        let Attachment { pool, page_of, .. } = &mut self.attachments[list];
        pool.release(id, page_of[id as usize] != NONE);
    }

    /// The list of checkpoints, the last one if there are any.
    fn checkpoints(&self) -> Option<usize> {
        let list = self.attachments.len().checked_sub(1)?;
        self.attachments[list].window.is_none().then_some(list)
    }

    /// Lists of pages of windows.
    fn windows(&self) -> std::ops::Range<usize> {
        0..self.checkpoints().unwrap_or(self.attachments.len())
    }

    /// Gives a table the pages for `n` more positions after the first `position`, and places for the states at the ends of
    /// pages, of all or of those that `stops` name, as long as there are any; takes back what its windows have passed. False
    /// if there are not enough pages; what it has then is still its own.
    pub fn extend(&mut self, table: &mut Table, position: usize, n: usize, stops: &Stops) -> bool {
        self.release_passed(table, position);
        while table.len < (position + n).div_ceil(PAGE_TOKENS) {
            let Some(page) = self.take() else { return false };
            for list in self.windows() {
                let Some(window) = self.take_attached(list) else {
                    (0..list).for_each(|list| self.release_attached(table, list, table.len));
                    self.release(page);
                    return false;
                };
                table.pages[1 + list][table.len] = window;
            }
            table.pages[FULL][table.len] = page;
            table.len += 1;
        }
        if let Some(list) = self.checkpoints() {
            for index in position / PAGE_TOKENS..(position + n) / PAGE_TOKENS {
                let stop = if self.keeps_all { Some(Stop::Kept) } else { stops.after(index + 1) };
                let Some(stop) = stop else { continue };
                if stop == Stop::Rolling {
                    self.drop_rolling(table, list, position);
                }
                if table.pages[1 + list][index] == NONE {
                    table.pages[1 + list][index] = self.take_checkpoint(table, list, position);
                }
                let id = table.pages[1 + list][index];
                if stop == Stop::Rolling && id != NONE {
                    table.rolling = Some(Rolling { index, id, serial: ROOT });
                }
            }
        }
        true
    }

    /// A place for a checkpoint of a table at `position`: a free one, else the one used longest ago, else the table's own
    /// first, unless it goes on from that; [`NONE`] if sequences hold all of them.
    fn take_checkpoint(&mut self, table: &mut Table, list: usize, position: usize) -> u32 {
        if let Some(id) = self.take_attached(list) {
            return id;
        }
        let stands_on = table.stands_on(position);
        let is_spare = |index: &usize| table.pages[1 + list][*index] != NONE && Some(*index) != stands_on;
        let Some(index) = (0..table.len).find(is_spare) else { return NONE };
        self.release_attached(table, list, index);
        self.take_attached(list).unwrap_or(NONE)
    }

    /// Gives up the checkpoint that a table has left while generating, unless somebody goes on from it.
    fn drop_rolling(&mut self, table: &mut Table, list: usize, position: usize) {
        let Some(Rolling { index, id, serial }) = table.rolling.take() else { return };
        if table.pages[1 + list][index] == id {
            if table.stands_on(position) != Some(index) {
                self.release_attached(table, list, index);
            }
            return;
        }
        let page = self.attachments[list].page_of[id as usize];
        let is_mine = page != NONE && self.nodes[page as usize].serial == serial;
        if is_mine && self.attachments[list].pool.owners[id as usize] == 0 {
            self.detach(list, page);
        }
    }

    /// A pass has brought a table's sequence to `position`, and its state with it.
    pub fn advance(&mut self, table: &mut Table, position: usize) {
        table.state_position = position;
        self.drop_resumed(table);
    }

    fn drop_resumed(&mut self, table: &mut Table) {
        let resumed = std::mem::replace(&mut table.resumed, NONE);
        if let Some(list) = self.checkpoints().filter(|_| resumed != NONE) {
            self.release_id(list, resumed);
        }
    }

    fn release_passed(&mut self, table: &mut Table, position: usize) {
        for list in self.windows() {
            let first = self.attachments[list].first_seen(position).min(table.len);
            while table.first_kept[list] < first {
                self.release_attached(table, list, table.first_kept[list]);
                table.first_kept[list] += 1;
            }
        }
    }

    /// Where a sequence that has come to `fed` can go on at or before `position`: everything that its windows see, and its
    /// state, are there. 0 is its beginning.
    pub fn resumable(&self, table: &Table, fed: usize, position: usize) -> usize {
        let sees_all =
            |at: usize| self.windows().all(|list| table.first_kept[list] <= self.attachments[list].first_seen(at));
        let Some(list) = self.checkpoints().filter(|_| position < fed) else {
            return if sees_all(position) { position } else { 0 };
        };
        let has_state = |pages: &usize| table.pages[1 + list][pages - 1] != NONE && sees_all(pages * PAGE_TOKENS);
        (1..=position / PAGE_TOKENS).rev().find(has_state).map_or(0, |pages| pages * PAGE_TOKENS)
    }

    /// Takes back all pages after those of the first `position` positions, and all states behind that position.
    pub fn truncate(&mut self, table: &mut Table, position: usize) {
        // From the end, so that of two pages without owners the one that depends on the other goes first.
        while table.len > position.div_ceil(PAGE_TOKENS) {
            table.len -= 1;
            (0..self.attachments.len()).for_each(|list| self.release_attached(table, list, table.len));
            let page = std::mem::replace(&mut table.pages[FULL][table.len], NONE);
            self.release(page);
        }
        table.first_kept.iter_mut().for_each(|first| *first = (*first).min(table.len));
        table.rolling = table.rolling.filter(|rolling| rolling.index < position / PAGE_TOKENS);
        let Some(list) = self.checkpoints() else { return };
        if !position.is_multiple_of(PAGE_TOKENS) && position < table.state_position {
            self.release_attached(table, list, position / PAGE_TOKENS);
        }
        if position < table.state_position {
            table.state_position = 0;
        }
        if position == 0 {
            self.drop_resumed(table);
        }
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

    /// Publishes page `index` of a table, which holds `tokens` after `parent`, with what is attached to it, and returns its
    /// serial. If another page with the same is there already, the table gets that one instead.
    pub fn publish(&mut self, table: &mut Table, index: usize, parent: u64, tokens: &[u32]) -> u64 {
        let mine = table.pages[FULL][index];
        let page = match self.find(parent, tokens) {
            Some(page) if page != mine => {
                self.full.retain(page);
                table.pages[FULL][index] = page;
                self.release(mine);
                page
            }
            Some(page) => page,
            None => {
                self.insert(mine, parent, tokens);
                mine
            }
        };
        for list in 0..self.attachments.len() {
            let mine = table.pages[1 + list][index];
            if mine == NONE {
                continue;
            }
            let there = self.nodes[page as usize].attached[list];
            if there == NONE {
                self.attach(list, page, mine);
                self.n_taken += u64::from(self.checkpoints() == Some(list));
            } else if there != mine {
                self.attachments[list].pool.retain(there);
                table.pages[1 + list][index] = there;
                self.release_id(list, mine);
            }
        }
        let serial = self.nodes[page as usize].serial;
        // Whoever goes on after this page finds its checkpoint there.
        if let Some(list) = self.checkpoints() {
            if let Some(rolling) = table.rolling.as_mut().filter(|rolling| rolling.index == index) {
                rolling.serial = serial;
                // That of another sequence is not this one's to give up.
                table.rolling = table.rolling.filter(|rolling| rolling.id == table.pages[1 + list][index]);
            }
            self.release_attached(table, list, index);
        }
        serial
    }

    fn attach(&mut self, list: usize, page: u32, id: u32) {
        self.nodes[page as usize].attached[list] = id;
        self.attachments[list].page_of[id as usize] = page;
    }

    fn insert(&mut self, page: u32, parent: u64, tokens: &[u32]) {
        self.tokens[page as usize * PAGE_TOKENS..][..PAGE_TOKENS].copy_from_slice(tokens);
        let bucket = self.bucket(parent, tokens);
        self.serials += 1;
        let next = std::mem::replace(&mut self.buckets[bucket], page);
        self.nodes[page as usize] = Node { serial: self.serials, parent, next, ..UNPUBLISHED };
    }

    fn detach(&mut self, list: usize, page: u32) {
        let id = std::mem::replace(&mut self.nodes[page as usize].attached[list], NONE);
        if id != NONE {
            let Attachment { pool, page_of, .. } = &mut self.attachments[list];
            page_of[id as usize] = NONE;
            pool.withdraw(id);
        }
    }

    /// A page is no longer found; without owners it is free.
    pub fn withdraw(&mut self, page: u32) {
        let Node { serial, parent, next, .. } = self.nodes[page as usize];
        if serial == ROOT {
            return;
        }
        (0..self.attachments.len()).for_each(|list| self.detach(list, page));
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
        self.full.withdraw(page);
    }

    /// Published pages without owners, the one that was given back last first.
    pub fn idle_newest_first(&self) -> impl Iterator<Item = u32> + '_ {
        let pool = &self.full;
        let step = |page: &u32| Some(pool.links[*page as usize][PREV]);
        std::iter::successors(step(&pool.head()), step).take_while(|page| *page != pool.head())
    }

    /// Whether a sequence that has a page, and what its windows see before its end, can go on after it.
    pub fn can_go_on_after(&self, page: u32) -> bool {
        self.checkpoints().is_none_or(|list| self.nodes[page as usize].attached[list] != NONE)
    }

    /// What is known of a page.
    pub fn node(&self, page: u32) -> Node {
        self.nodes[page as usize]
    }

    /// A page for `tokens` after `parent`, published and owned, with as many of the attachments of `wanted` (bit by bit) as
    /// there is room for; `None` if it is there already or there is no free page for it.
    pub fn take_saved(&mut self, parent: u64, tokens: &[u32], wanted: u32) -> Option<u32> {
        if self.find(parent, tokens).is_some() || self.full.free.is_empty() {
            return None;
        }
        let page = self.take()?;
        self.insert(page, parent, tokens);
        for list in (0..self.attachments.len()).filter(|list| wanted >> list & 1 == 1) {
            if let Some(free) = self.attachments[list].pool.free.pop() {
                // Published and without owners.
                self.attachments[list].pool.push_idle(free);
                self.attach(list, page, free);
            }
        }
        Some(page)
    }

    /// Whether a checkpoint is among these attachments, bit by bit.
    pub fn has_checkpoint(&self, mask: u32) -> bool {
        self.checkpoints().is_some_and(|list| mask >> list & 1 == 1)
    }

    /// Whether there is a checkpoint that holds nothing.
    pub fn has_free_checkpoint(&self) -> bool {
        self.checkpoints().is_some_and(|list| !self.attachments[list].pool.free.is_empty())
    }

    /// Gives up the checkpoint at the end of a published page, which nobody goes on from; false if there is none.
    pub fn give_up_checkpoint(&mut self, page: u32) -> bool {
        let Some(list) = self.checkpoints() else { return false };
        let has_one = self.nodes[page as usize].attached[list] != NONE;
        self.detach(list, page);
        has_one
    }

    /// Ends the ownership that [`Pages::take_saved`] has begun.
    pub fn give_back(&mut self, page: u32) {
        for (Attachment { pool, .. }, &id) in self.attachments.iter_mut().zip(&self.nodes[page as usize].attached) {
            if id != NONE && pool.owners[id as usize] == 0 {
                // As new as the page itself.
                pool.unlink_idle(id);
                pool.push_idle(id);
            }
        }
        self.release(page);
    }

    /// Nothing of a table's pages is found any more.
    pub fn withdraw_all(&mut self, table: &Table) {
        for index in 0..table.len {
            self.withdraw(table.pages[FULL][index]);
        }
    }

    /// Appends to a table, which holds whole pages up to `serial`, as many published pages as its sequence can continue
    /// after, of those that hold the next of `tokens`, whole pages of the sequence from its start.
    pub fn adopt(&mut self, table: &mut Table, serial: u64, tokens: &[u32]) -> Adopted {
        let (held, mut parent, mut end) = (table.len, serial, table.len);
        for tokens in tokens.chunks_exact(PAGE_TOKENS).skip(held) {
            let Some(page) = self.find(parent, tokens) else { break };
            table.pages[FULL][end] = page;
            parent = self.nodes[page as usize].serial;
            end += 1;
        }
        let shared = end;
        while end > held && !self.is_complete(table, held, end) {
            end -= 1;
        }
        if end == held {
            return Adopted { serial, shared };
        }
        for index in held..end {
            let page = table.pages[FULL][index];
            self.full.retain(page);
            for list in self.windows() {
                let window = self.nodes[page as usize].attached[list];
                if index >= self.attachments[list].first_seen(end * PAGE_TOKENS) {
                    self.attachments[list].pool.retain(window);
                    table.pages[1 + list][index] = window;
                }
            }
        }
        table.len = end;
        let last = self.nodes[table.pages[FULL][end - 1] as usize];
        if let Some(list) = self.checkpoints() {
            self.attachments[list].pool.retain(last.attached[list]);
            self.drop_resumed(table);
            (table.resumed, table.state_position) = (last.attached[list], 0);
        }
        self.release_passed(table, end * PAGE_TOKENS);
        Adopted { serial: last.serial, shared }
    }

    /// Whether all is there to continue after `end` pages, of which the table holds `held` and the others are published.
    fn is_complete(&self, table: &Table, held: usize, end: usize) -> bool {
        let attached = |list: usize, index: usize| match index < held {
            true => table.pages[1 + list][index],
            false => self.nodes[table.pages[FULL][index] as usize].attached[list],
        };
        let all_seen = self.windows().all(|list| {
            let first = self.attachments[list].first_seen(end * PAGE_TOKENS);
            (first..end).all(|index| attached(list, index) != NONE)
        });
        all_seen && self.checkpoints().is_none_or(|list| attached(list, end - 1) != NONE)
    }
}

#[cfg(test)]
mod tests;
