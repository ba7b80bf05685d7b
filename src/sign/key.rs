//! Keys as people handle them: OpenSSH's lines and files, told apart by their fingerprints.

use std::fmt;
use std::str::FromStr;

use base64ct::{Base64, Encoding};
use serde::{Serialize, Serializer};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, LineEnding};
use zeroize::Zeroizing;

use super::wire::take_string;

/// Size of the secret that an Ed25519 key is made from.
pub const SEED_SIZE_BYTES: usize = 32;

const PRIVATE_BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const PRIVATE_END: &str = "-----END OPENSSH PRIVATE KEY-----";
/// How the bytes of a private key file begin, and the count of keys in it.
const PRIVATE_MAGIC: &[u8] = b"openssh-key-v1\0";
const ONE_KEY: [u8; 4] = [0, 0, 0, 1];

/// A key that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text or bytes are no key.
    #[error("not an OpenSSH key: {0}")]
    Malformed(String),
    /// The text is no fingerprint.
    #[error("`{0}` is not a fingerprint: expected `SHA256:` and 43 characters")]
    Fingerprint(String),
    /// The key is fine, but of a kind that signs nothing here.
    #[error("{0} keys are not supported: expected Ed25519, or ECDSA on P-256 or P-384, on hardware or not")]
    Unsupported(String),
    /// The key is fine, and has signed in a way that is not judged.
    #[error("signatures by `{0}` are not supported: expected one by the algorithm that the key is named by")]
    UnsupportedSignature(String),
}

/// What people compare keys by, as `ssh-keygen -l` prints it: `SHA256:` and the unpadded base64 of the hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        ssh_key::Fingerprint::Sha256(self.0).fmt(formatter)
    }
}

impl FromStr for Fingerprint {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text.parse() {
            Ok(ssh_key::Fingerprint::Sha256(bytes)) => Ok(Self(bytes)),
            _ => Err(KeyError::Fingerprint(text.to_owned())),
        }
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A public key; two are equal when their key material is, whatever their comments.
#[derive(Debug, Clone)]
pub struct PublicKey {
    /// SSH's wire form, of which everything else is a reading.
    wire: Vec<u8>,
    key: ssh_key::public::KeyData,
    comment: String,
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.wire == other.wire
    }
}

impl Eq for PublicKey {}

impl PublicKey {
    /// Reads `ssh-ed25519 AAAA... comment`, one line of a `.pub` file.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub fn parse(line: &str) -> Result<Self, KeyError> {
        let blanks = [' ', '\t'];
        let (algorithm, rest) =
            line.trim_matches([' ', '\t', '\r', '\n']).split_once(blanks).unwrap_or_default();
        let mut words =
            rest.trim_start_matches(blanks).splitn(2, blanks).map(|word| word.trim_matches(blanks));
        let Some(material) = words.next().filter(|_| !algorithm.is_empty()) else {
            return Err(KeyError::Malformed("expected an algorithm and base64".into()));
        };
        let wire = Base64::decode_vec(material).map_err(|error| KeyError::Malformed(error.to_string()))?;
        let key = Self::from_wire(&wire)?;
        if key.algorithm() != algorithm {
            let what = format!("the line says `{algorithm}`, the key is `{}`", key.algorithm());
            return Err(KeyError::Malformed(what));
        }
        Ok(Self { comment: words.next().unwrap_or_default().to_owned(), ..key })
    }

    /// Reads SSH's wire form, to the last byte.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub fn from_wire(wire: &[u8]) -> Result<Self, KeyError> {
        let key = ssh_key::PublicKey::from_bytes(wire).map_err(malformed)?;
        // One key, one form: fingerprints and revocations must not be dodged by spelling a key otherwise.
        if key.to_bytes().map_err(malformed)? != wire {
            return Err(KeyError::Malformed("its encoding is not the canonical one".into()));
        }
        Ok(Self { wire: wire.to_vec(), key: key.into(), comment: String::new() })
    }

    /// SSH's wire form.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// The remark that came with the key; anybody may have written it.
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// OpenSSH's name of the algorithm, e.g. `ssh-ed25519`.
    pub fn algorithm(&self) -> String {
        self.key.algorithm().as_str().to_owned()
    }

    /// What people compare keys by.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(&HashAlg::Sha256.digest(&self.wire));
        Fingerprint(bytes)
    }

    /// `ssh-ed25519 AAAA...`, without the comment.
    pub fn line(&self) -> String {
        format!("{} {}", self.algorithm(), Base64::encode_string(&self.wire))
    }

    /// The same with the comment, which is one line whatever it holds.
    pub fn line_with_comment(&self) -> String {
        let comment: String = self.comment.chars().filter(|sign| !sign.is_control()).collect();
        format!("{} {comment}", self.line()).trim_end().to_owned()
    }

    /// Refuses the kinds of keys whose signatures are not judged.
    ///
    /// # Errors
    /// [`KeyError::Unsupported`].
    pub fn check_supported(&self) -> Result<(), KeyError> {
        match self.key.algorithm() {
            Algorithm::Ed25519 | Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => Ok(()),
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 | EcdsaCurve::NistP384 } => Ok(()),
            _ => Err(KeyError::Unsupported(format!("`{}`", self.algorithm()))),
        }
    }

    pub(super) fn data(&self) -> &ssh_key::public::KeyData {
        &self.key
    }
}

/// A private key in OpenSSH's own format; its secret is wiped from memory when it is dropped.
pub struct PrivateKey {
    key: ssh_key::PrivateKey,
    public: PublicKey,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PrivateKey({})", self.public.fingerprint())
    }
}

impl PrivateKey {
    /// Makes the Ed25519 key of `seed`, which must be random and secret.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] never, as far as anybody knows; the encoder may refuse.
    pub fn from_seed(seed: &[u8; SEED_SIZE_BYTES], comment: &str) -> Result<Self, KeyError> {
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(seed));
        Self::new(ssh_key::PrivateKey::new(pair, comment).map_err(malformed)?)
    }

    /// Reads the text of a private key file, which may be encrypted.
    ///
    /// # Errors
    /// [`KeyError::Malformed`], for the older PEM formats, too, and for ECDSA secrets that begin with a zero, which
    /// `ssh-keygen` leaves out and `ssh-key` misses.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        Self::new(ssh_key::PrivateKey::from_bytes(&private_bytes(text)?).map_err(malformed)?)
    }

    fn new(key: ssh_key::PrivateKey) -> Result<Self, KeyError> {
        let wire = key.public_key().to_bytes().map_err(malformed)?;
        // A key that is encrypted keeps its comment so, too.
        let public = PublicKey { comment: key.comment().to_owned(), ..PublicKey::from_wire(&wire)? };
        Ok(Self { key, public })
    }

    /// The public half, readable without a passphrase.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The secret half can be used as it is: it is neither encrypted nor on hardware.
    pub fn signs_by_itself(&self) -> bool {
        let on_hardware =
            matches!(self.key.algorithm(), Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256);
        !self.is_encrypted() && !on_hardware
    }

    /// The secret half is behind a passphrase.
    pub fn is_encrypted(&self) -> bool {
        self.key.is_encrypted()
    }

    /// The text of a key file, as `ssh-keygen` reads it.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] never, as far as anybody knows; the encoder may refuse.
    pub fn to_openssh(&self) -> Result<Zeroizing<String>, KeyError> {
        self.key.to_openssh(LineEnding::LF).map_err(malformed)
    }

    pub(super) fn inner(&self) -> &ssh_key::PrivateKey {
        &self.key
    }
}

/// The public half of a private key file's text, and whether the secret half is encrypted, as its header says.
///
/// # Errors
/// [`KeyError::Malformed`], for the older PEM formats, too.
pub fn header_of_private(text: &str) -> Result<(PublicKey, bool), KeyError> {
    let bytes = private_bytes(text)?;
    let cut = || KeyError::Malformed("its header is cut short".into());
    let mut rest = bytes.strip_prefix(PRIVATE_MAGIC).ok_or_else(cut)?;
    let cipher = take_string(&mut rest).ok_or_else(cut)?;
    // How the passphrase is made into the cipher's key, and with what.
    let is_whole = take_string(&mut rest).and_then(|_| take_string(&mut rest)).is_some();
    let mut rest = rest.strip_prefix(&ONE_KEY).filter(|_| is_whole).ok_or_else(cut)?;
    let public = PublicKey::from_wire(take_string(&mut rest).ok_or_else(cut)?)?;
    Ok((public, cipher != b"none"))
}

/// The bytes of a private key file, in lines of whatever length: `ssh-key` reads those of `ssh-keygen` alone.
fn private_bytes(text: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let inner = text.split_once(PRIVATE_BEGIN).and_then(|(_, rest)| rest.split_once(PRIVATE_END));
    let (inner, _) =
        inner.ok_or_else(|| KeyError::Malformed(format!("expected `{PRIVATE_BEGIN}` and its end")))?;
    // As large as it gets from the beginning, so that no part of it is left behind in memory.
    let mut base64 = Zeroizing::new(String::with_capacity(inner.len()));
    base64.extend(inner.split_ascii_whitespace());
    let bytes = Base64::decode_vec(&base64).map_err(|error| KeyError::Malformed(error.to_string()))?;
    Ok(Zeroizing::new(bytes))
}

fn malformed(error: ssh_key::Error) -> KeyError {
    KeyError::Malformed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From OpenSSH's own test data for Ed25519 keys.
    const LINE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti user@example.com";

    #[test]
    fn a_public_key_is_its_material_and_not_its_comment() {
        let key = PublicKey::parse(LINE).unwrap();
        assert_eq!(key.comment(), "user@example.com");
        assert_eq!(key.fingerprint().to_string(), "SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ");
        assert_eq!(format!("{} user@example.com", key.line()), LINE);
        assert_eq!(PublicKey::parse(&key.line()).unwrap(), key);
        assert_eq!(key.fingerprint().to_string().parse(), Ok(key.fingerprint()));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for line in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti",
        ] {
            assert!(PublicKey::parse(line).is_err(), "{line}");
        }
        assert!("SHA256:short".parse::<Fingerprint>().is_err());
    }

    #[test]
    fn a_private_key_survives_its_file_and_hides_its_secret() {
        let key = PrivateKey::from_seed(&[7; 32], "me").unwrap();
        let again = PrivateKey::parse(&key.to_openssh().unwrap()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(again.public().comment(), "me");
        assert!(again.signs_by_itself());
        assert_eq!(format!("{key:?}"), format!("PrivateKey({})", key.public().fingerprint()));
    }

    #[test]
    fn a_private_key_may_have_lines_of_any_length() {
        let key = PrivateKey::from_seed(&[7; 32], "me").unwrap();
        let text = key.to_openssh().unwrap();
        let base64 = text.lines().filter(|line| !line.starts_with('-')).collect::<String>();
        for width in [64, 76, 1000] {
            let lines = base64.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap());
            let lines = lines.collect::<Vec<_>>().join("\r\n");
            let read = PrivateKey::parse(&format!("{PRIVATE_BEGIN}\n{lines}\n{PRIVATE_END}\n")).unwrap();
            assert_eq!(read.public(), key.public());
        }
        assert_eq!(header_of_private(&text).unwrap(), (key.public().clone(), false));
        assert!(PrivateKey::parse(&text[..text.len() / 2]).is_err());
    }
}
