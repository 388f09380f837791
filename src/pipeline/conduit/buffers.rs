//! Buffers of one stream: used again, and never more than its bound.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The size of one buffer. A stream has at most four under way: one being filled, the others on their way.
pub(super) const BUFFER: usize = 256 << 10;

/// The buffers of one stream that are not in use. Clones share them.
#[derive(Clone, Default)]
pub(in crate::pipeline) struct Buffers {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// A buffer of [`BUFFER`] bytes.
    pub(in crate::pipeline) fn take(&self) -> Vec<u8> {
        self.lock().pop().unwrap_or_else(|| vec![0; BUFFER])
    }

    /// The first `filled` bytes of `buffer`; the buffer comes back when they are dropped.
    pub(in crate::pipeline) fn lend(&self, buffer: Vec<u8>, filled: usize) -> Bytes {
        Bytes::from_owner(Lent { buffer, filled, home: self.clone() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lent {
    buffer: Vec<u8>,
    filled: usize,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.lock().push(std::mem::take(&mut self.buffer));
    }
}
