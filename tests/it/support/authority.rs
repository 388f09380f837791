//! Certificates for servers of tests.

use std::path::Path;
use std::process::Command;

/// Makes a private authority (`ca.pem`) in `folder`, and a certificate by it for 127.0.0.1 (`cert.pem`, `key.pem`).
pub(crate) fn certificates(folder: &Path) {
    let script = "printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' >names
new='req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
openssl $new -x509 -keyout ca.key -out ca.pem -subj /CN=authority -days 2
openssl $new -keyout key.pem -out request -subj /CN=server
openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names";
    let made = Command::new("sh").args(["-ec", script]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
