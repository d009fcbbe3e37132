//! The loader's buffers: the KV cache and then the scratch region, before anything else uses them.

use crate::load::weights::readers;
use crate::model::Model;

/// How many buffers there are, and their size.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    /// Bytes of each.
    bytes: usize,
    /// How many there must be.
    fewest: usize,
    /// How many are of use.
    most: usize,
}

impl Buffers {
    pub(super) fn of(model: &Model, workers: usize) -> Buffers {
        let most = readers(workers, model.weights.bytes);
        Buffers { bytes: model.buffer_bytes(most), fewest: readers(workers, 0), most }
    }

    /// Bytes of scratch that buffers need beside a KV cache of so many bytes.
    pub(super) fn scratch_bytes(self, kv_bytes: u64) -> u64 {
        let missing = (self.fewest as u64).saturating_sub(kv_bytes / self.bytes as u64);
        missing * self.bytes as u64
    }

    /// As many as there is room for, cut off the two regions.
    pub(super) fn carve<'a>(self, kv: &mut &'a mut [u8], scratch: &mut &'a mut [u8]) -> Vec<&'a mut [u8]> {
        let mut buffers = Vec::with_capacity(self.most);
        for region in [kv, scratch] {
            while buffers.len() < self.most && region.len() >= self.bytes {
                let (buffer, rest) = std::mem::take(region).split_at_mut(self.bytes);
                buffers.push(buffer);
                *region = rest;
            }
        }
        buffers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_lie_in_the_kv_cache_and_then_in_scratch_that_has_room_for_the_fewest() {
        let buffers = Buffers { bytes: 100, fewest: 4, most: 7 };
        for (kv_bytes, scratch_bytes, carved) in [(0, 400, 4), (99, 400, 4), (250, 200, 4), (400, 0, 4), (699, 0, 6)] {
            assert_eq!(buffers.scratch_bytes(kv_bytes), scratch_bytes, "{kv_bytes} bytes of KV cache");
            let (mut kv, mut scratch) = (vec![1; kv_bytes as usize], vec![2; scratch_bytes as usize]);
            let (mut kv, mut scratch) = (&mut kv[..], &mut scratch[..]);
            let carved_here = buffers.carve(&mut kv, &mut scratch);
            assert_eq!(carved_here.len(), carved, "{kv_bytes} bytes of KV cache");
            let from_kv = carved_here.iter().filter(|buffer| buffer[0] == 1).count();
            assert!(carved_here.iter().all(|buffer| buffer.len() == 100));
            let rest = (kv_bytes as usize - from_kv * 100, scratch_bytes as usize - (carved - from_kv) * 100);
            assert_eq!((kv.len(), scratch.len()), rest);
        }
        // No more than are of use.
        let (mut kv, mut scratch) = (vec![0; 1000], vec![0; 1000]);
        let (mut kv, mut scratch) = (&mut kv[..], &mut scratch[..]);
        assert_eq!(buffers.carve(&mut kv, &mut scratch).len(), 7);
        assert_eq!((kv.len(), scratch.len()), (300, 1000));
    }
}
