//! The edges of Ed25519: keys, commitments and scalars that lax rules let pass. Each case is made so that the lax rules
//! do, where they can, and must be refused.

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
