//! Operations on one object: attributes, data, space, extended attributes.
//!
//! Layer: model, below `node`. Rule: everything that can fail comes before the first change.

use cairn_op::{
    AccessMask, FileKind, FsStat, Name, ObjectRef, ReadOnly, Reply, SetAttrs, Stability, Status,
    XattrHow,
};
use cairn_sys::{Block, BlockMut, Payload};
use cairn_units::{BLOCK_BYTES, BLOCK_BYTES_U64, FILE_BYTES_MAX, Fbn, WallTime};

use crate::XATTR_VALUE_BYTES_MAX;
use crate::inode::Inode;
use crate::node::{Call, Volume};
use crate::rules::{self, Want};

type Done = Result<Reply<ObjectRef>, Status>;

/// One piece of a byte range inside one block.
struct Piece {
    fbn: Fbn,
    from: usize,
    to: usize,
}

/// The pieces of `count` bytes from `offset`, in order.
fn pieces(offset: u64, count: u64) -> impl Iterator<Item = Piece> {
    let end = offset.saturating_add(count);
    let mut at = offset;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let fbn = Fbn::of_offset(at);
        let base = fbn.get() * BLOCK_BYTES_U64;
        let stop = end.min(base.saturating_add(BLOCK_BYTES_U64));
        let inside = |x: u64| usize::try_from(x - base).unwrap_or(BLOCK_BYTES);
        let piece = Piece { fbn, from: inside(at), to: inside(stop) };
        at = stop;
        Some(piece)
    })
}

impl Volume {
    pub(crate) fn set_attr(
        &mut self,
        call: &Call<'_>,
        obj: &ObjectRef,
        set: &SetAttrs,
        guard: Option<WallTime>,
    ) -> Done {
        let cred = &call.ctx.cred;
        let inode = self.get_mut(obj)?;
        if set.size.is_some() {
            inode.data()?;
        }
        if guard.is_some_and(|ctime| ctime != inode.ctime) {
            return Err(Status::NotSync);
        }
        inode.guarded(cred).check_set(set)?;
        if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(Status::FileTooBig);
        }
        let before = inode.attrs().as_before();
        inode.apply(cred, set, call.now);
        Ok(Reply::Changed { before, after: inode.attrs() })
    }

    pub(crate) fn access(&self, call: &Call<'_>, obj: &ObjectRef, want: AccessMask) -> Done {
        let inode = self.get(obj)?;
        let mut granted = inode.guarded(&call.ctx.cred).granted(want);
        if call.ctx.read_only == ReadOnly::Yes {
            granted.0 &= !(AccessMask::MODIFY | AccessMask::EXTEND | AccessMask::DELETE);
        }
        Ok(Reply::Access { granted, attrs: inode.attrs() })
    }

    pub(crate) fn read(
        &mut self,
        call: &Call<'_>,
        obj: &ObjectRef,
        offset: u64,
        count: u32,
    ) -> Done {
        let inode = self.get_mut(obj)?;
        inode.data()?;
        inode.guarded(&call.ctx.cred).check_read_data()?;
        let left = inode.size.saturating_sub(offset);
        let count = u32::try_from(left.min(u64::from(count))).unwrap_or(count);
        let mut bytes = Vec::new();
        for piece in pieces(offset, u64::from(count)) {
            match inode.data()?.get(&piece.fbn) {
                Some(block) => bytes.extend_from_slice(&block[piece.from..piece.to]),
                None => bytes.resize(bytes.len() + (piece.to - piece.from), 0),
            }
        }
        inode.touch_atime(call.now);
        let eof = u64::from(count) == left;
        let data = Payload::copy_from(offset, &bytes);
        Ok(Reply::Read { data, eof, attrs: inode.attrs() })
    }

    /// Blocks in the volume that are not used.
    fn free_blocks(&self) -> u64 {
        self.size_bytes.saturating_sub(self.used_bytes()) / BLOCK_BYTES_U64
    }

    pub(crate) fn write(
        &mut self,
        call: &Call<'_>,
        obj: &ObjectRef,
        offset: u64,
        data: &Payload,
        stability: Stability,
    ) -> Done {
        let cred = &call.ctx.cred;
        let free = self.free_blocks();
        let inode = self.get_mut(obj)?;
        inode.data()?;
        inode.guarded(cred).check_write_data()?;
        let len = u64::from(data.len());
        let end = offset.checked_add(len).filter(|e| *e <= FILE_BYTES_MAX);
        let end = end.ok_or(Status::FileTooBig)?;
        let blocks = inode.data_mut()?;
        let new = pieces(offset, len).filter(|p| !blocks.contains_key(&p.fbn)).count();
        if new as u64 > free {
            return Err(Status::NoSpace);
        }
        let before = inode.attrs().as_before();
        let bytes = data.to_vec();
        let blocks = inode.data_mut()?;
        let mut rest = &bytes[..];
        for piece in pieces(offset, len) {
            let (now, later) = rest.split_at(piece.to - piece.from);
            let block = blocks.entry(piece.fbn).or_insert_with(|| BlockMut::zeroed().freeze());
            block.make_mut()[piece.from..piece.to].copy_from_slice(now);
            rest = later;
        }
        if len > 0 {
            inode.size = inode.size.max(end);
            inode.mode = rules::mode_after_write(cred, inode.mode);
            inode.touch_mtime(call.now);
        }
        Ok(Reply::Written {
            count: data.len(),
            stability,
            verifier: call.verifier,
            before,
            after: inode.attrs(),
        })
    }

    pub(crate) fn commit(&self, call: &Call<'_>, obj: &ObjectRef) -> Done {
        let inode = self.get(obj)?;
        inode.data()?;
        let after = inode.attrs();
        Ok(Reply::Committed { verifier: call.verifier, before: after.as_before(), after })
    }

    pub(crate) fn punch(
        &mut self,
        call: &Call<'_>,
        obj: &ObjectRef,
        offset: u64,
        count: u64,
    ) -> Done {
        let cred = &call.ctx.cred;
        let inode = self.get_mut(obj)?;
        inode.data()?;
        inode.guarded(cred).check_write_data()?;
        let before = inode.attrs().as_before();
        let end = offset.saturating_add(count).min(inode.size);
        if offset < end {
            punch_blocks(inode, offset, end)?;
            inode.mode = rules::mode_after_write(cred, inode.mode);
            inode.touch_mtime(call.now);
        }
        Ok(Reply::Changed { before, after: inode.attrs() })
    }

    pub(crate) fn fs_stat(&self, obj: &ObjectRef) -> Done {
        let attrs = self.get(obj)?.attrs();
        let free_bytes = self.free_blocks() * BLOCK_BYTES_U64;
        let free_files = u64::from(u32::MAX);
        let stat = FsStat {
            total_bytes: self.size_bytes,
            free_bytes,
            available_bytes: free_bytes,
            total_files: free_files + self.inodes.len() as u64,
            free_files,
        };
        Ok(Reply::FsStat { stat, attrs })
    }

    pub(crate) fn read_link(&self, obj: &ObjectRef) -> Done {
        let inode = self.get(obj)?;
        match &inode.body {
            crate::inode::Body::Link(target) => {
                Ok(Reply::LinkTarget { target: target.clone(), attrs: inode.attrs() })
            }
            _ if inode.kind == FileKind::Symlink => Err(Status::ServerFault),
            _ => Err(Status::Invalid),
        }
    }

    pub(crate) fn get_xattr(&self, call: &Call<'_>, obj: &ObjectRef, name: &Name) -> Done {
        let inode = self.get(obj)?;
        inode.check(&call.ctx.cred, Want::Read)?;
        let value = inode.xattrs.get(name).cloned().ok_or(Status::NoXattr)?;
        Ok(Reply::Xattr { value })
    }

    pub(crate) fn set_xattr(
        &mut self,
        call: &Call<'_>,
        obj: &ObjectRef,
        name: Name,
        value: Vec<u8>,
        how: XattrHow,
    ) -> Done {
        let inode = self.get_mut(obj)?;
        inode.check(&call.ctx.cred, Want::Write)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(Status::XattrTooBig);
        }
        match (how, inode.xattrs.contains_key(&name)) {
            (XattrHow::Create, true) => return Err(Status::Exists),
            (XattrHow::Replace, false) => return Err(Status::NoXattr),
            (XattrHow::Either | XattrHow::Create | XattrHow::Replace, _) => {}
        }
        let before = inode.attrs().as_before();
        inode.xattrs.insert(name, value);
        inode.touch_ctime(call.now);
        Ok(Reply::Changed { before, after: inode.attrs() })
    }

    pub(crate) fn remove_xattr(&mut self, call: &Call<'_>, obj: &ObjectRef, name: &Name) -> Done {
        let inode = self.get_mut(obj)?;
        inode.check(&call.ctx.cred, Want::Write)?;
        let before = inode.attrs().as_before();
        inode.xattrs.remove(name).ok_or(Status::NoXattr)?;
        inode.touch_ctime(call.now);
        Ok(Reply::Changed { before, after: inode.attrs() })
    }
}

/// Frees whole blocks of `offset..end` and zeroes the rest. A block that the range covers up to
/// the end of the file is whole.
fn punch_blocks(inode: &mut Inode, offset: u64, end: u64) -> Result<(), Status> {
    let size = inode.size;
    let blocks = inode.data_mut()?;
    let touched: Vec<Fbn> = blocks
        .range(Fbn::of_offset(offset)..=Fbn::of_offset(end - 1))
        .map(|(fbn, _)| *fbn)
        .collect();
    for fbn in touched {
        let base = fbn.get() * BLOCK_BYTES_U64;
        let last = size.min(base.saturating_add(BLOCK_BYTES_U64));
        if offset <= base && end >= last {
            blocks.remove(&fbn);
            continue;
        }
        let from = usize::try_from(offset.saturating_sub(base)).unwrap_or(0);
        let to = usize::try_from(end - base).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        if let Some(block) = blocks.get_mut(&fbn) {
            Block::make_mut(block)[from..to].fill(0);
        }
    }
    Ok(())
}
