//! How the blocks of a format lie in a panel.

/// Rows of a panel: the f32 lanes of one 512-bit vector, or of two 256-bit ones.
pub const PANEL_ROWS: usize = 16;

/// Columns that share one int8 activation scale, or eight: the unit in which integer kernels walk a row.
pub const GROUP: usize = 32;

/// Bytes of a unit: the same four bytes of every row of a panel.
pub const UNIT: usize = 4 * PANEL_ROWS;

/// Columns of a super-block of the k-quants.
pub const SUPER: usize = 256;

/// A format of blocks. A panel takes every row's block in an order of its own, the *arranged* block: `body` bytes in
/// words of four, of which a unit holds one of each row, then `tail` bytes in fields of `field` bytes, interleaved alike.
pub(super) struct BlockLayout {
    /// Bytes of a row's block that go to the body.
    pub body: usize,
    /// Bytes that go to the tail.
    pub tail: usize,
    /// Bytes of a field of the tail.
    pub field: usize,
    /// File block to arranged block.
    pub arrange: fn(&[u8], &mut [u8]),
    /// Arranged block to file block.
    pub restore: fn(&[u8], &mut [u8]),
    /// The values of a file block.
    pub decode: fn(&[u8], &mut [f32]),
}
