//! Hands disjoint blocks of one matrix to workers: each block exactly once, whoever asks first.
//!
//! # Safety
//! A [`Partition`] owns the unique borrow of its matrix for `'a`. Blocks are numbered; every number is drawn once: the numbers
//! are cut into disjoint ranges, and each range is drawn from by one atomic counter. Distinct numbers name disjoint
//! rectangles, and numbers that are drawn together make up one. Two [`OutTile`]s of one partition therefore never overlap, and
//! none outlives the borrow.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Workers that run one job together.
pub trait Team: Sync {
    /// How many workers there are, the caller among them.
    fn size(&self) -> usize;
    /// Runs `job(worker)` once on every worker, `0` being the caller, and returns when all are done.
    fn run(&self, job: &(dyn Fn(usize) + Sync));
    /// As [`Team::run`] for work that is drawn, as from a [`Partition`], until none is left: a worker that has not begun
    /// when the caller's own part is done, because something else runs on its CPU, is left out.
    fn run_dynamic(&self, job: &(dyn Fn(usize) + Sync)) {
        self.run(job);
    }
}

/// Most parts of a partition: the cores of the largest box brim is built for, twice over. More workers share parts.
const PARTS_MAX: usize = 32;

/// How many blocks of a part are taken; on a cache line of its own, so that workers do not wait for each other.
#[repr(align(64))]
struct Counter(AtomicUsize);

impl Counter {
    /// Takes some of `len` blocks, as many as `count(drawn)`: the first and how many; `None` if all are taken.
    fn take(&self, len: usize, count: impl Fn(usize) -> usize) -> Option<(usize, usize)> {
        let taken = |drawn: usize| (drawn < len).then(|| drawn + count(drawn).min(len - drawn));
        let drawn = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok()?;
        taken(drawn).map(|next| (drawn, next - drawn))
    }
}

/// How the rows of a partition are cut into bands.
#[derive(Clone, Copy)]
enum Bands<'a> {
    /// So many rows each.
    Even(usize),
    /// Groups of rows from one cut to the next, `copies` bands each: see [`Partition::grouped`].
    Groups { cuts: &'a [u32], copies: usize },
    /// Some of the rows, one each: see [`Partition::picked`].
    Rows(&'a [u32]),
}

/// A matrix `[rows, cols]` with `stride` elements from row to row, cut into blocks.
pub struct Partition<'a, T> {
    data: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    bands: Bands<'a>,
    block_cols: usize,
    parts: usize,
    reversed: bool,
    guided: bool,
    drawn: [Counter; PARTS_MAX],
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: workers get disjoint &mut-like blocks (see the head of this file), so sharing the partition moves T's between
// threads but never aliases them; T: Send suffices.
unsafe impl<T: Send> Sync for Partition<'_, T> {}

impl<'a, T> Partition<'a, T> {
    /// Cuts `data` into blocks of `block_rows` x `block_cols`; those at the edges are smaller.
    ///
    /// # Panics
    /// If the matrix does not fit `data` or a block is empty.
    pub fn new(
        data: &'a mut [T],
        (rows, cols, stride): (usize, usize, usize),
        (block_rows, block_cols): (usize, usize),
    ) -> Self {
        assert!(cols <= stride && block_rows > 0 && block_cols > 0);
        assert!(rows == 0 || (rows - 1) * stride + cols <= data.len(), "{rows} rows of stride {stride} do not fit");
        Partition::over(data, (rows, cols, stride), Bands::Even(block_rows), block_cols)
    }

    /// Cuts `data` into bands of unequal height, and these into blocks of `block_cols`. `cuts` rises from 0: group `g`
    /// has `cuts[g + 1] - cuts[g]` rows, `copies` times over: its first copy starts at row `copies * cuts[g]`, the next
    /// follows. Band `g * copies + i` is copy `i` of group `g`.
    ///
    /// # Panics
    /// If the cuts do not rise, or the matrix does not fit `data`, or a block is empty.
    pub fn grouped(
        data: &'a mut [T],
        (cols, stride): (usize, usize),
        (cuts, copies): (&'a [u32], usize),
        block_cols: usize,
    ) -> Self {
        assert!(cuts.first() == Some(&0) && cuts.is_sorted_by(|a, b| a < b) && copies > 0);
        assert!(cols <= stride && block_cols > 0);
        let rows = cuts[cuts.len() - 1] as usize * copies;
        assert!(rows == 0 || (rows - 1) * stride + cols <= data.len(), "{rows} rows of stride {stride} do not fit");
        Partition::over(data, (rows, cols, stride), Bands::Groups { cuts, copies }, block_cols)
    }

    /// Only the rows `picks` of `data`, which rise, each of `stride` elements; a row is cut into blocks of `block_cols`.
    /// Band `i` is row `picks[i]`.
    ///
    /// # Panics
    /// If the picks do not rise, or do not lie in `data`, or a block is empty.
    pub fn picked(data: &'a mut [T], stride: usize, picks: &'a [u32], block_cols: usize) -> Self {
        assert!(picks.is_sorted_by(|a, b| a < b) && block_cols > 0);
        let rows = picks.last().map_or(0, |last| *last as usize + 1);
        assert!(rows * stride <= data.len(), "{rows} rows of {stride} do not fit");
        Partition::over(data, (rows, stride, stride), Bands::Rows(picks), block_cols)
    }

    fn over(
        data: &'a mut [T],
        (rows, cols, stride): (usize, usize, usize),
        bands: Bands<'a>,
        block_cols: usize,
    ) -> Self {
        let drawn = [const { Counter(AtomicUsize::new(0)) }; PARTS_MAX];
        let data = data.as_mut_ptr();
        let (parts, reversed, guided) = (1, false, false);
        Partition { data, rows, cols, stride, bands, block_cols, parts, reversed, guided, drawn, borrow: PhantomData }
    }

    /// Gives each of `workers` a stretch of blocks of its own, so that what it reads for them is one stream.
    pub fn in_parts(self, workers: usize) -> Self {
        Partition { parts: workers.clamp(1, PARTS_MAX), ..self }
    }

    /// Hands out the last blocks first: where they are the most work, workers then finish together.
    ///
    /// # Panics
    /// If the partition is guided: blocks that are drawn together follow each other.
    pub fn reversed(self) -> Self {
        assert!(!self.guided);
        Partition { reversed: true, ..self }
    }

    /// Hands out half of what is left of a part and a band as one block, then half of the rest, down to one: long streams
    /// that are seldom interrupted, and workers that finish together all the same.
    ///
    /// # Panics
    /// If the last blocks come first.
    pub fn guided(self) -> Self {
        assert!(!self.reversed);
        Partition { guided: true, ..self }
    }

    /// The next block nobody has yet; `None` when all are taken.
    pub fn next(&self) -> Option<OutTile<'a, T>> {
        self.next_for(0)
    }

    /// The next block for `worker`: of its own part, then of the others'.
    pub fn next_for(&self, worker: usize) -> Option<OutTile<'a, T>> {
        self.next_among(worker, self.parts)
    }

    /// The next block of so many parts, `worker`'s own and those that follow it.
    pub fn next_among(&self, worker: usize, parts: usize) -> Option<OutTile<'a, T>> {
        let (index, count) = self.draw(worker, parts)?;
        // SAFETY: the counters hand out every number once.
        Some(unsafe { self.block(index, count) })
    }

    /// Blocks from left to right, and from top to bottom.
    fn grid(&self) -> (usize, usize) {
        let down = match self.bands {
            Bands::Even(block_rows) => self.rows.div_ceil(block_rows),
            Bands::Groups { cuts, copies } => (cuts.len() - 1) * copies,
            Bands::Rows(picks) => picks.len(),
        };
        (self.cols.div_ceil(self.block_cols), down)
    }

    /// Draws a number, or some that follow each other: the first and how many.
    fn draw(&self, worker: usize, parts: usize) -> Option<(usize, usize)> {
        let (across, down) = self.grid();
        let blocks = down * across;
        let (index, count) = (0..parts.min(self.parts)).find_map(|turn| {
            let part = (worker + turn) % self.parts;
            let (first, end) = (part * blocks / self.parts, (part + 1) * blocks / self.parts);
            self.drawn[part]
                .take(end - first, |drawn| match self.guided {
                    true => (end - first - drawn).div_ceil(2).min(across - (first + drawn) % across),
                    false => 1,
                })
                .map(|(drawn, count)| (first + drawn, count))
        })?;
        Some((if self.reversed { blocks - 1 - index } else { index }, count))
    }

    /// The blocks from number `index` on, `count` of one band.
    ///
    /// # Safety
    /// They are blocks of the grid, and nobody else has one of them.
    unsafe fn block(&self, index: usize, count: usize) -> OutTile<'a, T> {
        let (across, _) = self.grid();
        let (band, right) = (index / across, index % across);
        let (row0, rows) = match self.bands {
            Bands::Even(block_rows) => (band * block_rows, block_rows.min(self.rows - band * block_rows)),
            Bands::Groups { cuts, copies } => {
                let (first, end) = (cuts[band / copies] as usize, cuts[band / copies + 1] as usize);
                (first * copies + band % copies * (end - first), end - first)
            }
            // They rise, so different bands are different rows.
            Bands::Rows(picks) => (picks[band] as usize, 1),
        };
        let col0 = right * self.block_cols;
        // SAFETY: the block is one of the grid and bands are not empty, hence row0 < rows and col0 < cols, so the first
        // element lies inside the borrow checked by `new`.
        let data = unsafe { self.data.add(row0 * self.stride + col0) };
        OutTile {
            data,
            stride: self.stride,
            band,
            row0,
            rows,
            col0,
            cols: (count * self.block_cols).min(self.cols - col0),
            borrow: PhantomData,
        }
    }
}

/// Two matrices that are worked on together: block `i` of one goes with block `i` of the other.
pub struct Zipped<'a, T> {
    first: Partition<'a, T>,
    second: Partition<'a, T>,
}

impl<'a, T> Zipped<'a, T> {
    /// Both in as many blocks; drawn as those of `first` are.
    ///
    /// # Panics
    /// If they differ in their number of blocks, or some are drawn together.
    pub fn new(first: Partition<'a, T>, second: Partition<'a, T>) -> Self {
        let blocks = |(across, down): (usize, usize)| across * down;
        assert!(blocks(first.grid()) == blocks(second.grid()) && !first.guided);
        Zipped { first, second }
    }

    /// The next block of each for `worker`.
    pub fn next_for(&self, worker: usize) -> Option<(OutTile<'a, T>, OutTile<'a, T>)> {
        let (index, count) = self.first.draw(worker, self.first.parts)?;
        // SAFETY: the counters of the first hand out every number once.
        let first = unsafe { self.first.block(index, count) };
        // SAFETY: nobody draws from the second, which has as many blocks.
        Some((first, unsafe { self.second.block(index, count) }))
    }
}

/// One rectangle of a [`Partition`], held by one worker.
pub struct OutTile<'a, T> {
    data: *mut T,
    stride: usize,
    /// Which band of the partition it is in.
    pub band: usize,
    /// First row, counted in the partition.
    pub row0: usize,
    /// Rows of this block.
    pub rows: usize,
    /// First column, counted in the partition.
    pub col0: usize,
    /// Columns of this block.
    pub cols: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> OutTile<'_, T> {
    /// Row `row` of the block (counted from its own first row).
    ///
    /// # Panics
    /// If the block has no such row.
    #[inline]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: the row was checked, so it starts inside this block's rectangle.
        let start = unsafe { self.data.add(row * self.stride) };
        // SAFETY: `cols` elements of this row belong to this block alone, and `&mut self` keeps them unique.
        unsafe { std::slice::from_raw_parts_mut(start, self.cols) }
    }

    /// Copies one row of the block to another.
    ///
    /// # Panics
    /// If the block lacks one of them, or they are the same.
    pub fn copy_row(&mut self, from: usize, to: usize)
    where
        T: Copy,
    {
        assert!(from < self.rows && from != to);
        // SAFETY: the row was checked, so it starts inside this block's rectangle.
        let start = unsafe { self.data.add(from * self.stride) };
        // SAFETY: `cols` elements of this row belong to this block alone, and `row` borrows those of another.
        let source = unsafe { std::slice::from_raw_parts(start, self.cols) };
        self.row(to).copy_from_slice(source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_handed_out_once() {
        let shapes = [(5, 7, 9, (2, 3)), (1, 1, 1, (4, 4)), (0, 3, 3, (1, 1)), (3, 0, 4, (1, 1))];
        let cases =
            shapes.into_iter().flat_map(|shape| [1, 2, 3, PARTS_MAX, PARTS_MAX + 1].map(|parts| (shape, parts)));
        for ((rows, cols, stride, shape), parts) in cases {
            let mut data = vec![0u32; rows * stride];
            let partition = Partition::new(&mut data, (rows, cols, stride), shape).in_parts(parts);
            let partition = match parts {
                2 => partition.reversed(),
                3 => partition.guided(),
                _ => partition,
            };
            std::thread::scope(|scope| {
                for worker in 0..3 {
                    let partition = &partition;
                    scope.spawn(move || {
                        while let Some(mut block) = partition.next_for(worker) {
                            for r in 0..block.rows {
                                block.row(r).iter_mut().for_each(|x| *x += 1);
                            }
                        }
                    });
                }
            });
            for (i, x) in data.iter().enumerate() {
                assert_eq!(*x, u32::from(i % stride < cols), "element {i}");
            }
        }
    }

    #[test]
    fn a_tapered_grid_hands_out_halves_of_what_is_left() {
        let sizes = |partition: &Partition<'_, u8>, worker| {
            let drawn = std::iter::from_fn(|| partition.next_among(worker, 1));
            drawn.map(|block| (block.col0, block.cols)).collect::<Vec<_>>()
        };
        let mut row = [0; 157];
        // Two parts of 39 and 40 blocks of two columns; the last has one.
        let partition = Partition::new(&mut row, (1, 157, 157), (1, 2)).in_parts(2).guided();
        assert_eq!(sizes(&partition, 0), [(0, 40), (40, 20), (60, 10), (70, 4), (74, 2), (76, 2)]);
        assert_eq!(partition.next_for(0).map(|block| (block.col0, block.cols)), Some((78, 40)), "of the other part");
        assert_eq!(sizes(&partition, 1), [(118, 20), (138, 10), (148, 6), (154, 2), (156, 1)]);
        assert!(partition.next_for(0).is_none() && partition.next_for(1).is_none());
        // Never more than a band.
        let mut rows = [0; 24];
        let partition = Partition::new(&mut rows, (4, 6, 6), (1, 1)).guided();
        assert_eq!(sizes(&partition, 0).iter().map(|size| size.1).collect::<Vec<_>>(), [6, 6, 6, 3, 2, 1]);
    }

    #[test]
    fn every_row_of_every_group_is_handed_out_once_a_copy() {
        let (cols, stride, copies, cuts) = (5, 6, 2, [0, 1, 4, 6]);
        for parts in [1, 3] {
            let mut data = vec![0usize; 2 * 6 * stride];
            let partition = Partition::grouped(&mut data, (cols, stride), (&cuts, copies), 2).in_parts(parts);
            while let Some(mut block) = partition.next_for(1) {
                let value = 10 * (block.band + 1);
                for r in 0..block.rows {
                    block.row(r).iter_mut().for_each(|x| *x += value + r);
                }
            }
            let firsts: Vec<usize> = data.chunks(stride).map(|row| row[0]).collect();
            assert_eq!(firsts, [10, 20, 30, 31, 32, 40, 41, 42, 50, 51, 60, 61]);
            assert!(data.chunks(stride).all(|row| row[..cols].iter().all(|x| x == &row[0]) && row[cols] == 0));
        }
        let mut none = [0u8; 0];
        assert!(Partition::grouped(&mut none, (4, 4), (&[0], 2), 1).next().is_none());
    }

    #[test]
    fn every_element_of_the_picked_rows_is_handed_out_once() {
        let mut data = vec![0usize; 6 * 5];
        let partition = Partition::picked(&mut data, 5, &[0, 2, 5], 2);
        while let Some(mut block) = partition.next() {
            let value = 10 * (block.band + 1) + block.row0;
            block.row(0).iter_mut().for_each(|x| *x += value);
        }
        let rows: Vec<&[usize]> = data.chunks(5).collect();
        assert_eq!(rows, [&[10; 5], &[0; 5], &[22; 5], &[0; 5], &[0; 5], &[35; 5]]);
        assert!(Partition::picked(&mut data, 5, &[], 2).next().is_none());
    }

    #[test]
    fn blocks_of_two_matrices_are_handed_out_in_pairs() {
        let (mut wide, mut tall) = ([0usize; 3 * 10], [0usize; 7 * 6]);
        let pairs = Zipped::new(
            Partition::new(&mut wide, (3, 10, 10), (3, 2)).in_parts(2),
            Partition::new(&mut tall, (7, 5, 6), (7, 1)),
        );
        std::thread::scope(|scope| {
            for worker in 0..2 {
                let pairs = &pairs;
                scope.spawn(move || {
                    while let Some((mut wide, mut tall)) = pairs.next_for(worker) {
                        assert_eq!((wide.rows, wide.cols, tall.rows, tall.cols), (3, 2, 7, 1));
                        assert_eq!(wide.col0, 2 * tall.col0);
                        let value = 1 + wide.col0;
                        wide.row(2).fill(value);
                        wide.copy_row(2, 0);
                        (0..tall.rows).for_each(|row| tall.row(row)[0] += 1);
                    }
                });
            }
        });
        assert_eq!(wide[..10], [1, 1, 3, 3, 5, 5, 7, 7, 9, 9]);
        assert!(wide[10..20] == [0; 10] && wide[..10] == wide[20..]);
        assert!(tall.chunks(6).all(|row| row == [1, 1, 1, 1, 1, 0]));
    }

    #[test]
    #[should_panic(expected = "grid")]
    fn matrices_of_different_grids_are_not_paired() {
        let (mut wide, mut tall) = ([0u8; 4], [0u8; 4]);
        Zipped::new(Partition::new(&mut wide, (1, 4, 4), (1, 1)), Partition::new(&mut tall, (1, 4, 4), (1, 2)));
    }

    #[test]
    #[should_panic(expected = "guided")]
    fn a_tapered_grid_does_not_turn_round() {
        let _ = Partition::new(&mut [0u8; 8], (1, 8, 8), (1, 1)).guided().reversed();
    }

    #[test]
    #[should_panic(expected = "reversed")]
    fn a_grid_that_turned_round_is_not_tapered() {
        let _ = Partition::new(&mut [0u8; 8], (1, 8, 8), (1, 1)).reversed().guided();
    }

    #[test]
    #[should_panic(expected = "is_sorted_by")]
    fn rows_picked_twice_are_refused() {
        Partition::picked(&mut [0u8; 8], 2, &[1, 1], 1);
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn rows_beyond_the_end_are_refused() {
        Partition::picked(&mut [0u8; 8], 2, &[1, 4], 1);
    }

    #[test]
    #[should_panic(expected = "is_sorted_by")]
    fn empty_groups_are_refused() {
        Partition::grouped(&mut [0u8; 8], (1, 1), (&[0, 2, 2], 1), 1);
    }
}
