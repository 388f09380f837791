//! The example files that we hand out: each is what it claims to be.

use longshore::task::envelope::{self, ContentType, Limits};

#[test]
fn every_example_task_decodes_and_keeps_its_meaning_when_written_again() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let body = std::fs::read(&path).unwrap();
        let decode = |body: &[u8]| envelope::decode(body, ContentType::Json, &Limits::default());
        let task = decode(&body).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(task.kind, "docker_run", "{}", path.display());
        let again = envelope::encode(&task, ContentType::Json);
        assert_eq!(decode(&again).unwrap(), task, "{}", path.display());
        seen += 1;
    }
    assert!(seen > 0, "no example in {folder}");
}
