//! The edges of Ed25519: keys, commitments and scalars in every combination, so made that lax rules let them pass where
//! they can. What is not honest must be refused.

use std::collections::{BTreeMap, BTreeSet};

use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::traits::IsIdentity;
use curve25519_dalek::{EdwardsPoint, Scalar};
use ed25519_dalek::Verifier;
use mpatch::sign::{SshSig, SshSigError};
use ssh_key::HashAlg;

/// An SSHSIG with this key and signature, whatever they are.
fn framed(key: &[u8; 32], r: &[u8; 32], s: &[u8; 32]) -> Vec<u8> {
    let public = [string(b"ssh-ed25519"), string(key)].concat();
    let inner = [string(b"ssh-ed25519"), string(&[r.as_slice(), s].concat())].concat();
    sshsig(&public, &inner)
}

/// The frame around a public key and an inner signature.
pub fn sshsig(public: &[u8], inner: &[u8]) -> Vec<u8> {
    let middle = [string(b"mpatch"), string(b""), string(b"sha512")].concat();
    [b"SSHSIG\0\0\0\x01".as_slice(), &string(public), &middle, &string(inner)].concat()
}

/// A string as SSH writes it: its size in big-endian, then its bytes.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    let size = bytes.len() as u32;
    [&[(size >> 24) as u8, (size >> 16) as u8, (size >> 8) as u8, size as u8][..], bytes].concat()
}

/// A key or a commitment as it is written, and the part of it that the base point has.
#[derive(Clone, Copy)]
struct Written {
    kind: &'static str,
    bytes: [u8; 32],
    scalar: Scalar,
}

/// One signature of one message.
struct Edge {
    kinds: String,
    message: &'static [u8],
    key: [u8; 32],
    r: [u8; 32],
    s: [u8; 32],
}

/// What the rules say of it, as their equations are written.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// `8 s B = 8 R + 8 k A`, whatever the encodings: RFC 8032's looser rule.
    cofactored: bool,
    /// `s B - k A` encodes to the bytes of `R`: what most libraries ask.
    cofactorless: bool,
    /// And everything is written in its one form, with points that the base point leads to.
    strict: bool,
}

/// 2^255 - 19, the lowest byte first.
const PRIME: [u8; 32] = {
    let mut bytes = [0xff; 32];
    (bytes[0], bytes[31]) = (0xed, 0x7f);
    bytes
};

/// The order of the base point, the lowest byte first.
fn order() -> [u8; 32] {
    let mut bytes = (Scalar::ZERO - Scalar::ONE).to_bytes();
    bytes[0] += 1;
    bytes
}

/// The sum of two numbers, unless it needs more bytes.
fn sum(one: [u8; 32], other: [u8; 32]) -> Option<[u8; 32]> {
    let mut carry = 0;
    let sum = std::array::from_fn(|place| {
        carry += u16::from(one[place]) + u16::from(other[place]);
        let byte = carry as u8;
        carry >>= 8;
        byte
    });
    (carry == 0).then_some(sum)
}

/// Takes what lax decoders take: any `y` below 2^255, and any sign of `x = 0`.
fn decode(bytes: [u8; 32]) -> Option<EdwardsPoint> {
    CompressedEdwardsY(bytes).decompress()
}

fn encode(point: EdwardsPoint) -> [u8; 32] {
    point.compress().to_bytes()
}

const MESSAGES: [&[u8]; 3] = [b"", b"a manifest", &[0xa5; 300]];

fn hashed(parts: &[&[u8]]) -> Scalar {
    let digest = HashAlg::Sha512.digest(&parts.concat());
    Scalar::from_bytes_mod_order_wide(&digest.try_into().unwrap())
}

fn signed_of(message: &[u8]) -> Vec<u8> {
    ssh_key::SshSig::signed_data("mpatch", HashAlg::Sha512, message).unwrap()
}

/// Every way to write a point of small order that a lax decoder takes.
fn small_orders() -> BTreeSet<[u8; 32]> {
    let mut written = BTreeSet::new();
    for point in EIGHT_TORSION {
        let mut y = encode(point);
        y[31] &= 0x7f;
        let below = |bytes: &[u8; 32]| bytes[31] & 0x80 == 0;
        for mut bytes in [Some(y), sum(y, PRIME)].into_iter().flatten().filter(below) {
            for sign in [0, 0x80] {
                bytes[31] = bytes[31] & 0x7f | sign;
                written.insert(bytes);
            }
        }
    }
    written
}

/// An honest point, the same with each component of small order, and every point of small order alone.
fn written(scalar: Scalar) -> Vec<Written> {
    let point = ED25519_BASEPOINT_POINT * scalar;
    let mixed = EIGHT_TORSION.into_iter().map(|torsion| Written {
        kind: if torsion.is_identity() { "honest" } else { "mixed" },
        bytes: encode(point + torsion),
        scalar,
    });
    let small = small_orders().into_iter().map(|bytes| {
        let is_canonical = encode(decode(bytes).unwrap()) == bytes;
        let kind = if is_canonical { "small" } else { "small, not canonical" };
        Written { kind, bytes, scalar: Scalar::ZERO }
    });
    mixed.chain(small).collect()
}

/// All combinations of keys, commitments and messages, each with the scalar that the looser rule accepts; and with
/// scalars that no rule accepts.
fn edges() -> Vec<Edge> {
    let mut edges = Vec::new();
    let canonical = |bytes: [u8; 32]| encode(decode(bytes).unwrap());
    for (number, message) in MESSAGES.into_iter().enumerate() {
        let number = [number as u8];
        let keys = written(hashed(&[b"secret", &number]));
        let commitments = written(hashed(&[b"nonce", &number]));
        for (key, r) in keys.iter().flat_map(|key| commitments.iter().map(move |r| (key, r))) {
            let kinds = format!("key: {}; commitment: {}", key.kind, r.kind);
            let mut sign = |kinds: String, key_hashed: [u8; 32], r_hashed: [u8; 32]| {
                let k = hashed(&[&r_hashed, &key_hashed, &signed_of(message)]);
                let s = (k * key.scalar + r.scalar).to_bytes();
                edges.push(Edge { kinds, message, key: key.bytes, r: r.bytes, s });
            };
            sign(kinds.clone(), key.bytes, r.bytes);
            // For those who hash points as they would write them.
            let rewritten = (canonical(key.bytes), canonical(r.bytes));
            if rewritten != (key.bytes, r.bytes) {
                sign(format!("{kinds}; hashed anew"), rewritten.0, rewritten.1);
            }
        }
    }
    let honest: Vec<usize> =
        (0..edges.len()).filter(|&index| edges[index].kinds == "key: honest; commitment: honest").collect();
    for index in honest {
        let Edge { message, key, r, s, .. } = edges[index];
        let mut add =
            |kinds: &str, message, s| edges.push(Edge { kinds: kinds.to_owned(), message, key, r, s });
        let more = std::iter::successors(sum(s, order()), |more| sum(*more, order()));
        more.for_each(|more| add("scalar: not reduced", message, more));
        for bit in 0..256 {
            let mut other = s;
            other[bit / 8] ^= 1 << (bit % 8);
            add(if bit < 252 { "scalar: another" } else { "scalar: high bits" }, message, other);
        }
        add("another message", b"something else", s);
    }
    // Points of full order that are not written in their one form, with nothing that fits them.
    for low in 0xf0..=0xff {
        for sign in [0x7f, 0xff] {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (low, sign);
            let [honest, s] = [edges[0].key, edges[0].s];
            let mut add = |kinds: &str, key, r| {
                edges.push(Edge { kinds: kinds.to_owned(), message: MESSAGES[1], key, r, s });
            };
            add("key: not canonical", bytes, honest);
            add("commitment: not canonical", honest, bytes);
        }
    }
    edges
}

fn verdict(edge: &Edge) -> Verdict {
    let none = Verdict { cofactored: false, cofactorless: false, strict: false };
    let s = Scalar::from_canonical_bytes(edge.s).into_option();
    let Some((key, s)) = decode(edge.key).zip(s) else { return none };
    let k = hashed(&[&edge.r, &edge.key, &signed_of(edge.message)]);
    let expected = ED25519_BASEPOINT_POINT * s - key * k;
    let cofactorless = encode(expected) == edge.r;
    let is_plain = |bytes: [u8; 32]| {
        decode(bytes)
            .is_some_and(|point| point.is_torsion_free() && !point.is_identity() && encode(point) == bytes)
    };
    let cofactored = decode(edge.r).is_some_and(|r| expected.mul_by_cofactor() == r.mul_by_cofactor());
    Verdict { cofactored, cofactorless, strict: cofactorless && is_plain(edge.key) && is_plain(edge.r) }
}

#[test]
fn the_edges_in_every_combination_get_the_strict_verdict() {
    assert_eq!(small_orders().len(), 14);
    let edges = edges();
    assert!(edges.len() >= 914, "{} edges", edges.len());
    // By kind: how many there are, and how many each rule accepts.
    let mut counts: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    for edge in &edges {
        let Edge { kinds, message, key, r, s } = edge;
        let verdict = verdict(edge);
        let parsed = SshSig::parse(&framed(key, r, s)).unwrap().verify(message);
        assert_eq!(parsed.is_ok(), verdict.strict, "{kinds}: {key:02x?} {r:02x?} {s:02x?}");
        assert!(verdict.strict || parsed == Err(SshSigError::Mismatch), "{kinds}: {parsed:?}");
        // The equations here agree with a library that is not strict.
        let signature = ed25519_dalek::Signature::from_components(*r, *s);
        let lax = ed25519_dalek::VerifyingKey::from_bytes(key)
            .is_ok_and(|key| key.verify(&signed_of(message), &signature).is_ok());
        assert_eq!(lax, verdict.cofactorless, "{kinds}: {key:02x?} {r:02x?} {s:02x?}");
        let count = counts.entry(kinds).or_default();
        count[0] += 1;
        let accepted = [verdict.cofactored, verdict.cofactorless, verdict.strict];
        accepted.iter().zip(&mut count[1..]).for_each(|(accepted, count)| *count += usize::from(*accepted));
    }
    assert_eq!(counts["key: honest; commitment: honest"], [3; 4]);
    let total = |place: usize| counts.values().map(|count| count[place]).sum::<usize>();
    assert_eq!(total(3), 3, "the strict rule accepts what is honest, and nothing else: {counts:?}");
    // The set tells the rules apart: all three disagree somewhere, in both ways that they can.
    assert!(total(1) > 2 * total(2) && total(2) > 10 * total(3), "{counts:?}");
    for kind in ["key: mixed; commitment: mixed", "key: small; commitment: honest"] {
        let [all, cofactored, cofactorless, strict] = counts[kind];
        assert!(
            cofactored == all && 0 < cofactorless && cofactorless < all && strict == 0,
            "{kind}: {counts:?}"
        );
    }
}
