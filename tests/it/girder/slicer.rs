//! What slicer_cli_web adds to a module's arguments, staged by the pipeline alone.

use serde_json::{Value, json};

use super::staged::{TOKEN, file, one_file, stage};
use crate::support::faulty::Reply;

fn access(token: Option<&str>) -> Value {
    json!({"api_url": "http://girder.test/api/v1", "token": token})
}

#[tokio::test]
async fn a_container_gets_the_address_and_the_token_and_nobody_is_told_it() {
    let staged = stage(&[
        json!({"$": "GirderApiUrl", "girder": access(Some(TOKEN))}),
        json!({"$": "GirderToken", "girder": access(Some(TOKEN))}),
    ])
    .await
    .unwrap();
    assert_eq!(staged.plan.arguments, ["http://girder.test/api/v1/", TOKEN]);
    let report = staged.attempt.report();
    report.note(format!("calls Girder as {TOKEN}."));
    report.describe(|details| details.argv = staged.plan.arguments.clone());
    let (_, details) = report.snapshot();
    assert!(details.log_tail.ends_with("calls Girder as [redacted].\n"), "{}", details.log_tail);
    assert_eq!(details.argv[1], "[redacted]");
}

#[tokio::test]
async fn a_token_that_nobody_has_is_told_before_any_container_is_made() {
    let error = stage(&[json!({"$": "GirderToken", "girder": access(None)})]).await.unwrap_err();
    assert_eq!(error.code, "bad_argument");
    assert!(error.message.contains("give its `girder` a token"), "{error}");
}

#[tokio::test]
async fn several_files_become_one_argument() {
    let server = one_file(b"content".to_vec(), |_, content| Reply::bytes(content)).await;
    let direct = |name: &str| {
        let mut direct = file(&server, "f1");
        direct["$"] = "DirectGirderFileIdToVolume".into();
        direct["filename"] = name.into();
        direct
    };
    let joined = json!({"$": "CommaJoinedVolumes", "volumes": [direct("a.txt"), direct("b.txt")]});
    let staged = stage(&[joined]).await.unwrap();
    let [argument] = &staged.plan.arguments[..] else { panic!("{:?}", staged.plan.arguments) };
    let names: Vec<&str> = argument.split(',').map(|path| path.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["a.txt", "b.txt"]);
    for mount in &staged.plan.mounts {
        for name in ["a.txt", "b.txt"] {
            assert_eq!(std::fs::read(mount.source.join(name)).unwrap(), b"content");
        }
    }
}

#[tokio::test]
async fn what_has_no_path_cannot_be_joined() {
    let joined = json!({"$": "CommaJoinedVolumes", "volumes": [{"$": "HostStdOut"}]});
    let error = stage(&[joined]).await.unwrap_err();
    assert!(error.message.contains("HostStdOut"), "{error}");
}
