//! Numbers and strings as SSH writes them: in big-endian, the only place where this crate does.
#![expect(clippy::big_endian_bytes, reason = "SSH's order is not for this crate to choose")]

/// Takes a number off; none where there is no more of it.
pub(super) fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (number, behind) = rest.split_first_chunk::<4>()?;
    *rest = behind;
    Some(u32::from_be_bytes(*number))
}

/// Takes a string off; none where it is cut short.
pub(super) fn take_string<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
    let size = take_u32(rest)? as usize;
    let (string, behind) = rest.split_at_checked(size)?;
    *rest = behind;
    Some(string)
}

/// A number's bytes.
pub(super) fn u32_bytes(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}
