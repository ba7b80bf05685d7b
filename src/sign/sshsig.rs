//! OpenSSH's signature format, SSHSIG, over a manifest.
//!
//! ```text
//! "SSHSIG"  u32 version = 1  string public key  string namespace = "mpatch"  string reserved = ""
//!           string hash = "sha512" | "sha256"   string { string algorithm  string signature [flags, counter] }
//! ```
//!
//! Integers are big-endian, strings have a `u32` size in front. What is signed is the same header over the hash of
//! the message. A patch holds these bytes; a `.sig` file holds them in base64 between two lines ("armour").
//!
//! `ssh-key` reads keys and checks ECDSA. The framing is read here, to the last byte, because its own reader takes
//! earlier versions and a trailing part; and Ed25519 is checked here, because OpenSSH's rules let keys and
//! signatures of small or mixed order pass, with which one signature can fit several messages.

use base64ct::{Base64, Encoding};
use curve25519_dalek::edwards::CompressedEdwardsY;
use ssh_key::{Algorithm, HashAlg, Signature};

use super::key::{KeyError, PrivateKey, PublicKey};
use super::wire;

/// What mpatch's signatures are for; signatures for other purposes are refused.
pub const NAMESPACE: &str = "mpatch";

const MAGIC: &[u8] = b"SSHSIG";
const VERSION: u32 = 1;
const ARMOUR_BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const ARMOUR_END: &str = "-----END SSH SIGNATURE-----";
/// The flags of a security key and its counter.
const HARDWARE_TRAILER_SIZE_BYTES: usize = 5;
/// The longest name of an algorithm that SSH allows.
const ALGORITHM_NAME_LENGTH_MAX: usize = 64;
/// As `ssh-keygen` breaks its lines.
const ARMOUR_LINE_CHARACTERS: usize = 70;

/// Why a signature is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SshSigError {
    /// The bytes are no SSHSIG.
    #[error("not an SSH signature: {0}")]
    Malformed(String),
    /// It was made for something else.
    #[error("the signature is for the namespace `{found}`, expected `{NAMESPACE}`")]
    Namespace {
        /// What it was made for.
        found: String,
    },
    /// It does not fit the message and the key.
    #[error("the signature does not fit the manifest")]
    Mismatch,
    /// It, or its key, is of a kind that is not judged.
    #[error(transparent)]
    Unsupported(KeyError),
    /// The key did not sign.
    #[error("the key does not sign: {0}")]
    Signing(String),
}

/// A signature, read but not believed.
#[derive(Debug, Clone)]
pub struct SshSig {
    bytes: Vec<u8>,
    key: PublicKey,
    namespace: String,
    hash: HashAlg,
    signature: Signature,
}

impl SshSig {
    /// Reads the binary form.
    ///
    /// # Errors
    /// [`SshSigError::Malformed`], or [`SshSigError::Unsupported`] for kinds of keys that have no reader here.
    pub fn parse(bytes: &[u8]) -> Result<Self, SshSigError> {
        let mut rest =
            bytes.strip_prefix(MAGIC).ok_or_else(|| malformed("it does not begin with `SSHSIG`"))?;
        let version = take_u32(&mut rest)?;
        if version != VERSION {
            return Err(malformed(format!("version {version}, expected {VERSION}")));
        }
        let key = public_key(take_string(&mut rest)?)?;
        let namespace = text(take_string(&mut rest)?)?;
        if !take_string(&mut rest)?.is_empty() {
            return Err(malformed("its reserved field is not empty"));
        }
        let hash = text(take_string(&mut rest)?)?;
        let hash = hash.parse().map_err(|_| malformed(format!("unknown hash `{hash}`")))?;
        let signature = inner_signature(take_string(&mut rest)?, &key)?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes follow its end", rest.len())));
        }
        Ok(Self { bytes: bytes.to_vec(), key, namespace, hash, signature })
    }

    /// Whether a file that begins so is meant to be a signature, in either form.
    pub fn is_begun_by(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC) || bytes.trim_ascii_start().starts_with(ARMOUR_BEGIN.as_bytes())
    }

    /// Reads the armoured form, as `ssh-keygen -Y sign` writes it.
    ///
    /// # Errors
    /// As [`SshSig::parse`].
    pub fn from_armour(armour: &str) -> Result<Self, SshSigError> {
        Self::parse(&Self::dearmour(armour)?)
    }

    /// The bytes within armour, whatever they are.
    ///
    /// # Errors
    /// [`SshSigError::Malformed`].
    pub fn dearmour(armour: &str) -> Result<Vec<u8>, SshSigError> {
        let inner = armour.trim().strip_prefix(ARMOUR_BEGIN).and_then(|rest| rest.strip_suffix(ARMOUR_END));
        let inner = inner.ok_or_else(|| malformed(format!("expected `{ARMOUR_BEGIN}` and its end")))?;
        let base64: String = inner.split_ascii_whitespace().collect();
        let bytes = Base64::decode_vec(&base64).map_err(|error| malformed(error.to_string()))?;
        Ok(bytes)
    }

    /// The binary form, as a patch holds it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The armoured form, as `ssh-keygen -Y verify` reads it.
    pub fn to_armour(&self) -> String {
        let base64 = Base64::encode_string(&self.bytes);
        let mut armour = format!("{ARMOUR_BEGIN}\n");
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            // Base64 is ASCII, so every place is a boundary.
            let (line, behind) = rest.split_at(rest.len().min(ARMOUR_LINE_CHARACTERS));
            armour.push_str(line);
            armour.push('\n');
            rest = behind;
        }
        armour + ARMOUR_END + "\n"
    }

    /// The key that it claims to be made with; [`SshSig::verify`] tells whether it was.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Checks that the key made this signature over `message`, for mpatch.
    ///
    /// # Errors
    /// [`SshSigError::Unsupported`], [`SshSigError::Namespace`] or [`SshSigError::Mismatch`].
    pub fn verify(&self, message: &[u8]) -> Result<(), SshSigError> {
        if self.namespace != NAMESPACE {
            return Err(SshSigError::Namespace { found: self.namespace.clone() });
        }
        self.key.check_supported().map_err(SshSigError::Unsupported)?;
        let fits = match self.key.data() {
            ssh_key::public::KeyData::Ed25519(key) => {
                let signed = ssh_key::SshSig::signed_data(NAMESPACE, self.hash, message);
                self.signature.algorithm() == Algorithm::Ed25519
                    && signed.is_ok_and(|signed| fits_ed25519(&key.0, &signed, self.signature.as_bytes()))
            }
            ssh_key::public::KeyData::SkEd25519(key) => {
                let signed = ssh_key::SshSig::signed_data(NAMESPACE, self.hash, message);
                self.signature.algorithm() == Algorithm::SkEd25519
                    && signed.is_ok_and(|signed| self.fits_hardware(key, &signed))
            }
            data => {
                let key = ssh_key::PublicKey::from(data.clone());
                let whole = ssh_key::SshSig::new(data.clone(), NAMESPACE, self.hash, self.signature.clone());
                whole.is_ok_and(|whole| key.verify(NAMESPACE, message, &whole).is_ok())
            }
        };
        if fits { Ok(()) } else { Err(SshSigError::Mismatch) }
    }

    /// A security key signs the hash of its application, its flags and counter, and the hash of the message.
    fn fits_hardware(&self, key: &ssh_key::public::SkEd25519, signed: &[u8]) -> bool {
        let Some((signature, trailer)) = self.signature.as_bytes().split_at_checked(64) else { return false };
        let application = HashAlg::Sha256.digest(key.application().as_bytes());
        let message = HashAlg::Sha256.digest(signed);
        fits_ed25519(&key.public_key().0, &[&application, trailer, &message].concat(), signature)
    }
}

/// Signs `message` for mpatch with a key that [signs by itself](PrivateKey::signs_by_itself), the same way every
/// time.
///
/// # Errors
/// [`SshSigError::Unsupported`] or [`SshSigError::Signing`].
pub fn sign(key: &PrivateKey, message: &[u8]) -> Result<SshSig, SshSigError> {
    key.public().check_supported().map_err(SshSigError::Unsupported)?;
    let signing = |error: ssh_key::Error| SshSigError::Signing(error.to_string());
    let made = key.inner().sign(NAMESPACE, HashAlg::Sha512, message).map_err(signing)?;
    let inner = Vec::<u8>::try_from(made.signature().clone()).map_err(signing)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&wire::u32_bytes(VERSION));
    for field in [key.public().wire(), NAMESPACE.as_bytes(), b"", HashAlg::Sha512.as_str().as_bytes(), &inner]
    {
        bytes.extend_from_slice(&wire::u32_bytes(field.len() as u32));
        bytes.extend_from_slice(field);
    }
    let signature = SshSig::parse(&bytes)?;
    // A signature that a fault spoilt can give the key away: it must not leave this function.
    signature.verify(message)?;
    Ok(signature)
}

/// Ed25519 with every door shut: key and `R` canonical and of full order, `S` below the group's order, no cofactor.
fn fits_ed25519(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    let is_sound = CompressedEdwardsY(*key)
        .decompress()
        .is_some_and(|point| point.compress().0 == *key && point.is_torsion_free());
    let verifying = ed25519_dalek::VerifyingKey::from_bytes(key);
    let signature = ed25519_dalek::Signature::from_slice(signature);
    match (verifying, signature) {
        (Ok(verifying), Ok(signature)) => is_sound && verifying.verify_strict(message, &signature).is_ok(),
        _ => false,
    }
}

fn public_key(wire: &[u8]) -> Result<PublicKey, SshSigError> {
    let algorithm = text(take_string(&mut &*wire)?)?;
    if algorithm.contains("-cert-v01@") {
        return Err(SshSigError::Unsupported(KeyError::Unsupported(format!("`{algorithm}`"))));
    }
    PublicKey::from_wire(wire).map_err(|error| match is_unheard_of(&algorithm) {
        true => SshSigError::Unsupported(KeyError::Unsupported(format!("`{algorithm}`"))),
        false => malformed(error.to_string()),
    })
}

/// Whether a name is that of an algorithm that a later OpenSSH may well have.
fn is_unheard_of(name: &str) -> bool {
    let is_plain = |sign: u8| sign.is_ascii_alphanumeric() || b"-.@_".contains(&sign);
    let is_known = Algorithm::new(name).is_ok_and(|known| !matches!(known, Algorithm::Other(_)));
    !name.is_empty() && name.len() <= ALGORITHM_NAME_LENGTH_MAX && name.bytes().all(is_plain) && !is_known
}

/// The innermost part: algorithm and signature, and for keys on hardware their flags and counter.
fn inner_signature(bytes: &[u8], key: &PublicKey) -> Result<Signature, SshSigError> {
    let mut rest = bytes;
    let name = text(take_string(&mut rest)?)?;
    // A key that is judged here may sign in a way that is not; what follows has a layout of its own.
    if name != key.algorithm() && is_unheard_of(&name) {
        return Err(SshSigError::Unsupported(KeyError::UnsupportedSignature(name)));
    }
    let algorithm = Algorithm::new(&name).map_err(|error| malformed(error.to_string()))?;
    let mut data = take_string(&mut rest)?.to_vec();
    // Flags and counter are not a string of their own, and only keys on hardware have them.
    let is_on_hardware = matches!(algorithm, Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256);
    if rest.len() != if is_on_hardware { HARDWARE_TRAILER_SIZE_BYTES } else { 0 } {
        return Err(malformed(format!("{} bytes follow a `{name}` signature", rest.len())));
    }
    data.extend_from_slice(rest);
    Signature::new(algorithm, data).map_err(|error| match key.check_supported() {
        Err(unsupported) => SshSigError::Unsupported(unsupported),
        Ok(()) => malformed(format!("a `{name}` signature: {error}")),
    })
}

fn malformed(what: impl Into<String>) -> SshSigError {
    SshSigError::Malformed(what.into())
}

fn text(bytes: &[u8]) -> Result<String, SshSigError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| malformed("a name in it is not UTF-8"))
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, SshSigError> {
    wire::take_u32(rest).ok_or_else(|| malformed("it is cut short"))
}

fn take_string<'b>(rest: &mut &'b [u8]) -> Result<&'b [u8], SshSigError> {
    wire::take_string(rest).ok_or_else(|| malformed("it is cut short"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> (PrivateKey, SshSig) {
        let key = PrivateKey::from_seed(&[7; 32], "").unwrap();
        let signature = sign(&key, b"a manifest").unwrap();
        (key, signature)
    }

    #[test]
    fn a_signature_fits_its_message_and_no_other() {
        let (key, signature) = signed();
        assert_eq!(signature.key(), key.public());
        assert_eq!(signature.verify(b"a manifest"), Ok(()));
        assert_eq!(signature.verify(b"a manifesto"), Err(SshSigError::Mismatch));
        assert_eq!(sign(&key, b"a manifest").unwrap().bytes(), signature.bytes());
    }

    #[test]
    fn armour_keeps_every_byte() {
        let (_, signature) = signed();
        let armour = signature.to_armour();
        assert_eq!(SshSig::from_armour(&armour).unwrap().bytes(), signature.bytes());
        // Other tools break lines elsewhere.
        assert!(SshSig::from_armour(&armour.replace('\n', "\r\n")).is_ok());
        for broken in ["", "-----BEGIN SSH SIGNATURE-----", &armour[1..], &armour.replacen('A', "!", 1)] {
            assert!(SshSig::from_armour(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_kind_of_key_that_is_unheard_of_is_unsupported_and_no_sign_of_tampering() {
        let field = |bytes: &[u8]| [&wire::u32_bytes(bytes.len() as u32)[..], bytes].concat();
        for (algorithm, is_unsupported) in
            [("ssh-ed448", true), ("ssh-mldsa65", true), ("ssh-ed25519", false), ("", false), ("a b", false)]
        {
            let key = [field(algorithm.as_bytes()), field(&[7; 57])].concat();
            let fields = [
                &key[..],
                b"mpatch",
                b"",
                b"sha512",
                &[field(algorithm.as_bytes()), field(&[7; 114])].concat(),
            ];
            let bytes = [&b"SSHSIG\0\0\0\x01"[..], &fields.map(field).concat()].concat();
            let found = SshSig::parse(&bytes).unwrap_err();
            assert_eq!(matches!(found, SshSigError::Unsupported(_)), is_unsupported, "{algorithm}: {found}");
        }
        // So is a way of signing that is unheard of, whatever follows its name.
        let webauthn = "webauthn-sk-ecdsa-sha2-nistp256@openssh.com";
        for (algorithm, is_unsupported) in [(webauthn, true), ("ssh-ed25519", false), ("ssh-rsa", false)] {
            let inner =
                [field(algorithm.as_bytes()), field(&[7; 64]), field(b"https://example.org")].concat();
            let fields = [signed().0.public().wire(), b"mpatch", b"", b"sha512", &inner].map(field);
            let found = SshSig::parse(&[&b"SSHSIG\0\0\0\x01"[..], &fields.concat()].concat()).unwrap_err();
            assert_eq!(matches!(found, SshSigError::Unsupported(_)), is_unsupported, "{algorithm}: {found}");
        }
    }

    #[test]
    fn every_bit_of_a_signature_counts() {
        let (_, signature) = signed();
        let bytes = signature.bytes();
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let outcome = SshSig::parse(&flipped).and_then(|signature| signature.verify(b"a manifest"));
            assert!(outcome.is_err(), "bit {bit} does not matter");
        }
        for size in 0..bytes.len() {
            assert!(SshSig::parse(&bytes[..size]).is_err(), "cut to {size} bytes");
        }
        assert!(SshSig::parse(&[bytes, &[0]].concat()).is_err(), "a byte more");
        // The reserved field is not signed.
        let fields = b"mpatch\0\0\0\0";
        let end = bytes.windows(fields.len()).position(|found| found == fields).unwrap() + fields.len();
        let reserved = [&bytes[..end - 1], b"\x01x", &bytes[end..]].concat();
        assert!(SshSig::parse(&reserved).is_err(), "the reserved field does not matter");
    }
}
