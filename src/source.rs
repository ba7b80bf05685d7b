//! Bytes that can be read at any place: in memory, or wherever a caller keeps them.
//!
//! What reads a large thing a part at a time asks for this and for no file, so that it can be held to hostile bytes
//! in memory; `checkpoint` has the one that is a file.

use std::fmt::Debug;
use std::io::{Error, ErrorKind, Result};

/// Bytes of a known number, readable at any place and from any thread.
///
/// They may change between two readings, as a file's may: who reads again checks again.
pub trait Source: Debug + Send + Sync {
    /// How many there are.
    fn size_bytes(&self) -> u64;

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// [`ErrorKind::UnexpectedEof`] beyond the end, and whatever reading fails with.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> Result<()>;

    /// All of them, where they are in memory anyway.
    fn in_memory(&self) -> Option<&[u8]> {
        None
    }
}

impl Source for Vec<u8> {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let there = usize::try_from(offset).ok().and_then(|start| self.get(start..)?.get(..bytes.len()));
        bytes.copy_from_slice(there.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn in_memory(&self) -> Option<&[u8]> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_past_the_end_of_memory_is_an_error() {
        let source = vec![1, 2, 3];
        let mut two = [0; 2];
        source.read_exact_at(&mut two, 1).unwrap();
        assert_eq!(two, [2, 3]);
        for offset in [2, 4, u64::MAX] {
            assert_eq!(source.read_exact_at(&mut two, offset).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
    }
}
