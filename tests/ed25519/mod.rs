//! The edges of Ed25519: keys, commitments and scalars that lax rules let pass. Each case is made so that the lax rules
//! do, where they can, and must be refused.

mod arithmetic;

use std::collections::{BTreeMap, BTreeSet};

use arithmetic::{Curve, Number, ORDER, PRIME, ZERO};
use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::Identity;
use ed25519_dalek::Verifier;
use mpatch::sign::{SshSig, SshSigError};
use ssh_key::HashAlg;

const MESSAGE: &[u8] = b"a manifest";

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

/// What OpenSSH's rules, without the strict ones, say of a signature.
fn lax(key: &[u8; 32], r: &[u8; 32], s: &[u8; 32]) -> bool {
    let signature = ed25519_dalek::Signature::from_components(*r, *s);
    ed25519_dalek::VerifyingKey::from_bytes(key).is_ok_and(|key| key.verify(&signed(), &signature).is_ok())
}

fn strict(key: &[u8; 32], r: &[u8; 32], s: &[u8; 32]) -> Result<(), SshSigError> {
    SshSig::parse(&framed(key, r, s)).unwrap().verify(MESSAGE)
}

fn signed() -> Vec<u8> {
    ssh_key::SshSig::signed_data("mpatch", HashAlg::Sha512, MESSAGE).unwrap()
}

/// The challenge `k` of a signature.
fn challenge(key: &[u8; 32], r: &[u8; 32]) -> Scalar {
    let hashed = HashAlg::Sha512.digest(&[r.as_slice(), key, &signed()].concat());
    Scalar::from_bytes_mod_order_wide(&hashed.try_into().unwrap())
}

/// All encodings of points of small order that a decoder may take: the canonical ones, those with `y` not reduced,
/// and those of `x = 0` with a sign.
fn encodings_of_small_order() -> Vec<[u8; 32]> {
    let mut encodings: Vec<[u8; 32]> = EIGHT_TORSION.iter().map(|point| point.compress().0).collect();
    // p = 2^255 - 19, little-endian: p and p + 1 stand for y = 0 and y = 1.
    for low in [0xed, 0xee] {
        let mut y = [0xff; 32];
        (y[0], y[31]) = (low, 0x7f);
        encodings.push(y);
        y[31] = 0xff;
        encodings.push(y);
    }
    let (mut one, mut minus_one) = ([0; 32], [0xff; 32]);
    (one[0], one[31]) = (1, 0x80);
    minus_one[0] = 0xec;
    encodings.extend([one, minus_one]);
    let decodes = |bytes: &[u8; 32]| {
        CompressedEdwardsY(*bytes).decompress().is_some_and(|point| point.is_small_order())
    };
    assert!(encodings.iter().all(decodes), "every one of them is a point of small order");
    assert_eq!(encodings.len(), 14);
    encodings
}

#[test]
fn an_honest_signature_passes() {
    let (secret, nonce) = (Scalar::from(123_u64), Scalar::from(456_u64));
    let key = (ED25519_BASEPOINT_POINT * secret).compress().0;
    let r = (ED25519_BASEPOINT_POINT * nonce).compress().0;
    let s = (nonce + challenge(&key, &r) * secret).to_bytes();
    assert_eq!(strict(&key, &r, &s), Ok(()));
    assert!(lax(&key, &r, &s));
}

#[test]
fn a_key_of_small_order_signs_nothing() {
    for key in encodings_of_small_order() {
        // With such a key every signature `R = r B, s = r` fits some messages; the lax rules let it pass.
        let passes = (1_u64..1000)
            .map(Scalar::from)
            .find(|nonce| lax(&key, &(ED25519_BASEPOINT_POINT * nonce).compress().0, &nonce.to_bytes()));
        let nonce = passes.expect("the lax rules accept one of them");
        let r = (ED25519_BASEPOINT_POINT * nonce).compress().0;
        assert_eq!(strict(&key, &r, &nonce.to_bytes()), Err(SshSigError::Mismatch), "{key:02x?}");
        for r in encodings_of_small_order() {
            assert_eq!(strict(&key, &r, &[0; 32]), Err(SshSigError::Mismatch), "{key:02x?} {r:02x?}");
        }
    }
}

#[test]
fn a_commitment_of_small_order_is_refused() {
    let secret = Scalar::from(123_u64);
    let key = (ED25519_BASEPOINT_POINT * secret).compress().0;
    let mut let_pass = 0;
    for r in encodings_of_small_order() {
        let s = (challenge(&key, &r) * secret).to_bytes();
        let_pass += usize::from(lax(&key, &r, &s));
        assert_eq!(strict(&key, &r, &s), Err(SshSigError::Mismatch), "{r:02x?}");
    }
    assert_eq!(let_pass, 1, "the lax rules accept the neutral element");
}

#[test]
fn a_scalar_has_one_form() {
    // The order of the group, little-endian.
    let order = Scalar::ZERO - Scalar::ONE;
    let (secret, nonce) = (Scalar::from(123_u64), Scalar::from(456_u64));
    let key = (ED25519_BASEPOINT_POINT * secret).compress().0;
    let r = (ED25519_BASEPOINT_POINT * nonce).compress().0;
    let s = (nonce + challenge(&key, &r) * secret).to_bytes();
    let mut more = s;
    // s + order = s + (order - 1) + 1, as often as it fits into 256 bits.
    for _ in 0..15 {
        let mut carry = 1_u16;
        for (byte, other) in more.iter_mut().zip(order.to_bytes()) {
            let sum = u16::from(*byte) + u16::from(other) + carry;
            *byte = sum as u8;
            carry = sum >> 8;
        }
        if carry > 0 {
            break;
        }
        assert_eq!(strict(&key, &r, &more), Err(SshSigError::Mismatch), "{more:02x?}");
    }
    for bit in 252..256 {
        let mut high = s;
        high[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(strict(&key, &r, &high), Err(SshSigError::Mismatch), "bit {bit}");
    }
}

#[test]
fn keys_and_commitments_of_mixed_order_are_refused() {
    let secret = Scalar::from(123_u64);
    let mut let_pass = [0; 2];
    for torsion in EIGHT_TORSION.into_iter().filter(|point| *point != EdwardsPoint::identity()) {
        let key = (ED25519_BASEPOINT_POINT * secret + torsion).compress().0;
        for nonce in (1_u64..100).map(Scalar::from) {
            for (index, of_r) in EIGHT_TORSION.iter().enumerate() {
                let r = (ED25519_BASEPOINT_POINT * nonce + of_r).compress().0;
                let challenge = challenge(&key, &r);
                if torsion * challenge + of_r != EdwardsPoint::identity() {
                    continue;
                }
                let s = (nonce + challenge * secret).to_bytes();
                assert!(lax(&key, &r, &s), "the lax rules accept what cancels out");
                let_pass[usize::from(index > 0)] += 1;
                assert_eq!(strict(&key, &r, &s), Err(SshSigError::Mismatch));
            }
        }
    }
    assert!(let_pass.iter().all(|count| *count > 10), "{let_pass:?}");
}

#[test]
fn a_point_has_one_form() {
    // y = p + 3 .. p + 18 decode where y = 3 .. 18 do, and stand for points of full order.
    let mut decoded = 0;
    for low in 0xf0..=0xff {
        let mut key = [0xff; 32];
        (key[0], key[31]) = (low, 0x7f);
        if CompressedEdwardsY(key).decompress().is_some() {
            decoded += 1;
            let r = (ED25519_BASEPOINT_POINT * Scalar::from(456_u64)).compress().0;
            assert_eq!(strict(&key, &r, &[1; 32]), Err(SshSigError::Mismatch));
        }
    }
    assert!(decoded > 3, "{decoded}");
}

// --------------------------------------------------------------------------------------- in every combination --

/// A key or a commitment as it is written, and the part of it that the base point has.
#[derive(Clone, Copy)]
struct Written {
    kind: &'static str,
    bytes: [u8; 32],
    scalar: Number,
}

/// One signature of one message.
struct Edge {
    kinds: String,
    message: &'static [u8],
    key: [u8; 32],
    r: [u8; 32],
    s: [u8; 32],
}

/// What the rules say of it, by [`arithmetic`] alone.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// `8 s B = 8 R + 8 k A`, whatever the encodings: RFC 8032's looser rule.
    cofactored: bool,
    /// `s B - k A` encodes to the bytes of `R`: what most libraries ask.
    cofactorless: bool,
    /// And everything is written in its one form, with points that the base point leads to.
    strict: bool,
}

/// Eight times [`ORDER`].
const EIGHT_ORDERS: Number = [
    ORDER[0] << 3,
    ORDER[1] << 3 | ORDER[0] >> 61,
    ORDER[2] << 3 | ORDER[1] >> 61,
    ORDER[3] << 3 | ORDER[2] >> 61,
];

const MESSAGES: [&[u8]; 3] = [b"", b"a manifest", &[0xa5; 300]];

fn hashed(parts: &[&[u8]]) -> Number {
    arithmetic::modulo_order(&HashAlg::Sha512.digest(&parts.concat()))
}

fn signed_of(message: &[u8]) -> Vec<u8> {
    ssh_key::SshSig::signed_data("mpatch", HashAlg::Sha512, message).unwrap()
}

/// Every way to write a point of small order that a lax decoder takes.
fn small_orders(curve: &Curve) -> BTreeSet<[u8; 32]> {
    let mut written = BTreeSet::new();
    for point in &curve.torsion {
        let mut y = point.encode();
        y[31] &= 0x7f;
        let (more, _) = arithmetic::sum(arithmetic::from_bytes(y), PRIME);
        for mut bytes in [y, arithmetic::to_bytes(more)] {
            if bytes[31] & 0x80 != 0 {
                continue;
            }
            for sign in [0, 0x80] {
                bytes[31] = bytes[31] & 0x7f | sign;
                written.insert(bytes);
            }
        }
    }
    written
}

/// An honest point, the same with each component of small order, and every point of small order alone.
fn written(curve: &Curve, scalar: Number) -> Vec<Written> {
    let point = curve.times(curve.base, scalar);
    let mixed = curve.torsion.iter().enumerate().map(|(index, torsion)| Written {
        kind: if index == 0 { "honest" } else { "mixed" },
        bytes: curve.add(point, *torsion).encode(),
        scalar,
    });
    let small = small_orders(curve).into_iter().map(|bytes| {
        let is_canonical = curve.decode(bytes).unwrap().encode() == bytes;
        let kind = if is_canonical { "small" } else { "small, not canonical" };
        Written { kind, bytes, scalar: ZERO }
    });
    mixed.chain(small).collect()
}

/// All combinations of keys, commitments and messages, each with the scalar that the looser rule accepts; and with
/// scalars that no rule accepts.
fn edges(curve: &Curve) -> Vec<Edge> {
    let mut edges = Vec::new();
    let canonical = |bytes: [u8; 32]| curve.decode(bytes).unwrap().encode();
    for (number, message) in MESSAGES.into_iter().enumerate() {
        let number = [number as u8];
        let keys = written(curve, hashed(&[b"secret", &number]));
        let commitments = written(curve, hashed(&[b"nonce", &number]));
        for (key, r) in keys.iter().flat_map(|key| commitments.iter().map(move |r| (key, r))) {
            let kinds = format!("key: {}; commitment: {}", key.kind, r.kind);
            let mut sign = |kinds: String, key_hashed: [u8; 32], r_hashed: [u8; 32]| {
                let k = hashed(&[&r_hashed, &key_hashed, &signed_of(message)]);
                let s = arithmetic::to_bytes(arithmetic::multiply_add(k, key.scalar, r.scalar));
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
        let mut more = arithmetic::from_bytes(s);
        while let (next, false) = arithmetic::sum(more, ORDER) {
            more = next;
            add("scalar: not reduced", message, arithmetic::to_bytes(more));
        }
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

fn verdict(curve: &Curve, edge: &Edge) -> Verdict {
    let none = Verdict { cofactored: false, cofactorless: false, strict: false };
    let (Some(key), s) = (curve.decode(edge.key), arithmetic::from_bytes(edge.s)) else { return none };
    if !arithmetic::is_below(s, ORDER) {
        return none;
    }
    let k = hashed(&[&edge.r, &edge.key, &signed_of(edge.message)]);
    // `8 L` times any point of the curve is neutral, so this is `-k A` whatever the order of `A`.
    let minus_k = arithmetic::difference(EIGHT_ORDERS, k);
    let expected = curve.add(curve.times(curve.base, s), curve.times(key, minus_k));
    let cofactorless = expected.encode() == edge.r;
    let is_plain = |bytes: [u8; 32]| {
        curve.decode(bytes).is_some_and(|point| {
            let leads_there = curve.times(point, ORDER).is_neutral() && !point.is_neutral();
            leads_there && point.encode() == bytes
        })
    };
    let cofactored = curve.decode(edge.r).is_some_and(|r| {
        let eight = [8, 0, 0, 0];
        curve.times(expected, eight) == curve.times(r, eight)
    });
    Verdict { cofactored, cofactorless, strict: cofactorless && is_plain(edge.key) && is_plain(edge.r) }
}

#[test]
fn the_edges_in_every_combination_get_the_strict_verdict() {
    let curve = Curve::new();
    assert_eq!(curve.base.encode(), ED25519_BASEPOINT_POINT.compress().0);
    assert_eq!(small_orders(&curve).len(), 14);
    let edges = edges(&curve);
    assert!(edges.len() >= 914, "{} edges", edges.len());
    // By kind: how many there are, and how many each rule accepts.
    let mut counts: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    for edge in &edges {
        let Edge { kinds, message, key, r, s } = edge;
        let verdict = verdict(&curve, edge);
        let parsed = SshSig::parse(&framed(key, r, s)).unwrap().verify(message);
        assert_eq!(parsed.is_ok(), verdict.strict, "{kinds}: {key:02x?} {r:02x?} {s:02x?}");
        assert!(verdict.strict || parsed == Err(SshSigError::Mismatch), "{kinds}: {parsed:?}");
        // The arithmetic here agrees with a library that is not strict.
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
