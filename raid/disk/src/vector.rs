//! The memory of a request as the kernel takes it.
//!
//! Layer: drivers, leaf. Buffers that follow one another in memory become one piece, so that a
//! request from one run of the block pool is a single buffer.

use cairn_sys::{Block, BlockMut};
use cairn_units::BLOCK_BYTES;

use crate::REQUEST_BLOCKS_MAX;

// The kernel takes at most IOV_MAX (1024) pieces.
const _: () = assert!(REQUEST_BLOCKS_MAX <= 1024);

/// Pieces of memory that belong to buffers which the request owns for as long as this lives.
pub(crate) struct Vector {
    pieces: Vec<libc::iovec>,
}

impl Vector {
    /// For reading into `bufs`.
    pub(crate) fn of_bufs(bufs: &mut [BlockMut]) -> Self {
        let mut vector = Self { pieces: Vec::new() };
        for buf in bufs {
            vector.push(buf.as_mut_ptr());
        }
        vector
    }

    /// For writing `blocks`.
    pub(crate) fn of_blocks(blocks: &[Block]) -> Self {
        let mut vector = Self { pieces: Vec::new() };
        for block in blocks {
            // The kernel only reads through it.
            vector.push(block.as_ptr().cast_mut());
        }
        vector
    }

    fn push(&mut self, page: *mut u8) {
        if let Some(last) = self.pieces.last_mut()
            && last.iov_base.addr() + last.iov_len == page.addr()
        {
            last.iov_len += BLOCK_BYTES;
            return;
        }
        self.pieces.push(libc::iovec { iov_base: page.cast(), iov_len: BLOCK_BYTES });
    }

    /// The pieces; never more than [`REQUEST_BLOCKS_MAX`].
    pub(crate) fn pieces(&self) -> &[libc::iovec] {
        &self.pieces
    }

    /// The only piece, if there is one only.
    pub(crate) fn single(&self) -> Option<(*mut u8, usize)> {
        match self.pieces[..] {
            [piece] => Some((piece.iov_base.cast(), piece.iov_len)),
            _ => None,
        }
    }

    /// Drops the first `bytes` bytes, which are done.
    pub(crate) fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 && !self.pieces.is_empty() {
            let first = &mut self.pieces[0];
            if bytes < first.iov_len {
                first.iov_base = first.iov_base.cast::<u8>().wrapping_add(bytes).cast();
                first.iov_len -= bytes;
                return;
            }
            bytes -= first.iov_len;
            self.pieces.remove(0);
        }
    }

    /// Bytes in all pieces.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.iter().map(|p| p.iov_len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_memory_become_one_piece_and_partial_progress_is_kept() {
        let mut bufs: Vec<BlockMut> = (0..600).map(|_| BlockMut::dirty()).collect();
        bufs.sort_by_key(|b| b.as_ptr().addr());
        let base = bufs[0].as_ptr().addr();
        let run = bufs.iter().enumerate().take_while(|(i, b)| b.as_ptr().addr() == base + i * 4096);
        let run = run.count();
        bufs.truncate(run);
        let mut vector = Vector::of_bufs(&mut bufs);
        assert_eq!(vector.pieces().len(), 1);
        assert_eq!(vector.bytes(), run * 4096);
        let blocks: Vec<Block> = bufs.into_iter().rev().map(BlockMut::freeze).collect();
        let reversed = Vector::of_blocks(&blocks);
        assert_eq!(reversed.pieces().len(), run);
        assert_eq!(reversed.single().is_some(), run == 1);
        vector.advance(512);
        assert_eq!(vector.bytes(), run * 4096 - 512);
        assert_eq!(vector.pieces()[0].iov_base.addr(), base + 512);
        vector.advance(run * 4096 - 512);
        assert!(vector.pieces().is_empty());
    }
}
