//! A certificate request, checked: it is small, its holder has the key, and the key is one we sign.
//!
//! Names, extensions and attributes in it are not looked at.

use muster_proto::{limits::MAX_CSR_BYTES, token::pin_of};
use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData,
    SubjectPublicKeyInfo,
};
use x509_parser::{
    certification_request::X509CertificationRequest, prelude::FromDer, public_key::PublicKey,
};

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// Larger than any honest one.
    #[error("it has {0} bytes, at most {MAX_CSR_BYTES} are accepted")]
    TooLarge(usize),
    /// Not a PKCS#10 request in DER.
    #[error("it is no PKCS#10 request in DER")]
    Unreadable,
    /// Not signed by the key in it.
    #[error("it is not signed by the key it asks for")]
    Signature,
    /// A key that we do not sign.
    #[error("its key must be P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits")]
    Key,
}

/// The key of an acceptable request.
#[derive(Debug, Clone)]
pub struct Request {
    key: SubjectPublicKeyInfo,
    fingerprint: [u8; 32],
}

impl Request {
    /// Checks a request in DER.
    ///
    /// # Errors
    /// When it is too large, unreadable, not signed by its key, or the key is none that we sign.
    pub fn check(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLarge(der.len()));
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| CsrError::Unreadable)?;
        if !rest.is_empty() {
            return Err(CsrError::Unreadable);
        }
        let spki = &request.certification_request_info.subject_pki;
        let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| CsrError::Key)?;
        if !acceptable(&key, spki.parsed().ok().as_ref()) {
            return Err(CsrError::Key);
        }
        request
            .verify_signature()
            .map_err(|_| CsrError::Signature)?;
        Ok(Self {
            fingerprint: pin_of(spki.raw),
            key,
        })
    }

    /// The key.
    pub(super) fn key(&self) -> &SubjectPublicKeyInfo {
        &self.key
    }

    /// SHA-256 of the key's SubjectPublicKeyInfo: tells whether two requests are of one holder.
    #[must_use]
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }
}

fn acceptable(key: &SubjectPublicKeyInfo, parsed: Option<&PublicKey<'_>>) -> bool {
    let curve = [
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_ED25519,
    ]
    .contains(&key.algorithm());
    let rsa =
        matches!(parsed, Some(PublicKey::RSA(rsa)) if (2048..=4096).contains(&rsa.key_size()));
    curve || rsa
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn request(key: &KeyPair) -> Vec<u8> {
        let params = CertificateParams::new(vec!["evil.example".to_owned()]).expect("a name");
        let made = params.serialize_request(key).expect("a request");
        made.der().to_vec()
    }

    #[test]
    fn honest_keys_are_taken() {
        for algorithm in [
            &PKCS_ECDSA_P256_SHA256,
            &PKCS_ECDSA_P384_SHA384,
            &PKCS_ED25519,
        ] {
            let key = KeyPair::generate_for(algorithm).expect("a key");
            let checked = Request::check(&request(&key)).expect("acceptable");
            assert_eq!(checked.key().der_bytes(), key.der_bytes());
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let key = KeyPair::generate().expect("a key");
        let good = request(&key);
        let refused = |der: &[u8]| Request::check(der).expect_err("refused");

        assert_eq!(refused(&[]), CsrError::Unreadable);
        assert_eq!(refused(&good[..good.len() - 1]), CsrError::Unreadable);
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(refused(&longer), CsrError::Unreadable);
        assert_eq!(refused(&[0x30; 8193]), CsrError::TooLarge(8193));
        let mut forged = good;
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert_eq!(refused(&forged), CsrError::Signature);
    }
}
