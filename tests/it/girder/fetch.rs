//! Inputs from the real Girder in real containers, laid out as `girder_worker` lays them out.

use serde_json::{Value, json};

use super::staged::noise;
use crate::docker::bench::{Bench, Told};
use crate::support::girder::Girder;

/// A Girder, a folder in it, and what opens both.
struct Rig {
    bench: Bench,
    girder: Girder,
    folder: String,
    access: Value,
}

impl Rig {
    async fn new() -> Rig {
        let girder = Girder::shared().await;
        let (folder, job) = (girder.folder("inputs").await, girder.job("fetch").await);
        let access = json!({"api_url": girder.api_url(), "token": job.token});
        Rig { bench: Bench::new().await, girder, folder, access }
    }

    /// Uploads a file as an item of its own; the file's id and its item's.
    async fn upload(&self, folder: &str, name: &str, content: &[u8]) -> (String, String) {
        let file = self.girder.upload(folder, name, content).await;
        (file["_id"].as_str().unwrap().to_owned(), file["itemId"].as_str().unwrap().to_owned())
    }

    /// Runs `script` whose `$0`, `$1`, … are `args`, as a user that owns nothing.
    async fn sh(&self, script: &str, args: &[Value]) -> Told {
        let mut all = vec![json!("-c"), json!(script)];
        all.extend_from_slice(args);
        let args = json!({"image": "busybox:latest", "pull": "never", "entrypoint": "sh", "container_args": all,
            "options": {"user": "1234:1234", "network_mode": "none"}});
        self.bench.run(args).await
    }

    /// A transform with this Girder.
    fn transform(&self, mut spec: Value) -> Value {
        spec["girder"] = self.access.clone();
        spec
    }
}

/// What follows the volume in a container path.
fn below(path: &str) -> &str {
    let rest = path.strip_prefix("/mnt/girder_worker/").unwrap_or_else(|| panic!("{path}"));
    &rest[33..]
}

#[tokio::test]
async fn a_file_lies_in_a_folder_of_its_id_under_its_own_name_or_at_the_path_given() {
    let rig = Rig::new().await;
    let content = noise(100_000);
    let (id, _) = rig.upload(&rig.folder, "input%20a.bin", &content).await;
    let named = rig.transform(json!({"$": "GirderFileIdToVolume", "file_id": id}));
    let given = rig.transform(json!({"$": "GirderFileIdToVolume", "file_id": id, "filename": "given.bin"}));
    let told = rig
        .sh(
            "echo \"$0\"; echo \"$1\"; cmp \"$0\" \"$1\" && wc -c < \"$0\" && stat -c %a \"$0\"",
            &[named, given],
        )
        .await;
    let out = told.stdout();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(below(lines[0]), format!("{id}/input a.bin"));
    assert_eq!(below(lines[1]), "given.bin");
    assert_eq!(&lines[2..], ["100000", "644"]);
    let carried: Vec<u64> = told.details.streams.iter().map(|stream| stream.bytes).collect();
    assert_eq!(carried, [100_000, 100_000]);
}

#[tokio::test]
async fn an_item_is_a_file_when_it_holds_just_that_and_else_a_folder() {
    let rig = Rig::new().await;
    let (_, single) = rig.upload(&rig.folder, "single.txt", b"one").await;
    let (_, several) = rig.upload(&rig.folder, "several.txt", b"first").await;
    rig.girder.post(&format!("file?parentType=item&parentId={several}&name=more.txt&size=4"), b"more").await;
    let items =
        [&single, &several].map(|id| rig.transform(json!({"$": "GirderItemIdToVolume", "item_id": id})));
    let told = rig
        .sh(
            "echo $0; cat $0; echo; echo $1; cat $1/several.txt $1/more.txt; echo; touch $1/new && ls $1",
            &items,
        )
        .await;
    let out = told.stdout();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((below(lines[0]), lines[1]), (format!("{single}/single.txt").as_str(), "one"));
    assert_eq!((below(lines[2]), lines[3]), (format!("{several}/several.txt").as_str(), "firstmore"));
    assert_eq!(&lines[4..], ["more.txt", "new", "several.txt"]);
}

#[tokio::test]
async fn a_folder_comes_with_all_below_it() {
    let rig = Rig::new().await;
    let path = format!("folder?parentType=folder&parentId={}&name=sub", rig.folder);
    let sub = rig.girder.post(&path, b"").await["_id"].as_str().unwrap().to_owned();
    rig.upload(&rig.folder, "top.txt", b"top").await;
    rig.upload(&sub, "inner.txt", b"inner").await;
    rig.upload(&sub, "empty", b"").await;
    let name = rig.girder.get(&format!("folder/{}", rig.folder)).await["name"].as_str().unwrap().to_owned();
    let own = rig.transform(json!({"$": "GirderFolderIdToVolume", "folder_id": rig.folder}));
    let given =
        rig.transform(json!({"$": "GirderFolderIdToVolume", "folder_id": sub, "folder_name": "mine"}));
    let told = rig
        .sh(
            "echo $0; cd $0 && find . -type f | sort; cat top.txt sub/inner.txt; echo; echo $1; ls $1",
            &[own, given],
        )
        .await;
    let out = told.stdout();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(below(lines[0]), format!("{}/{name}", rig.folder));
    assert_eq!(&lines[1..5], ["./sub/empty", "./sub/inner.txt", "./top.txt", "topinner"]);
    assert_eq!(below(lines[5]), format!("{sub}/mine"));
    assert_eq!(&lines[6..], ["empty", "inner.txt"]);
}

#[tokio::test]
async fn a_file_is_streamed_into_a_pipe_and_never_lies_on_disk() {
    let rig = Rig::new().await;
    let content = noise(3_000_000);
    let (id, _) = rig.upload(&rig.folder, "stream.bin", &content).await;
    let stream = json!({"$": "Connect", "input": rig.transform(json!({"$": "GirderFileIdToStream", "file_id": id})),
        "output": {"$": "NamedInputPipe", "name": "in"}});
    let told =
        rig.sh("test -p $0 && md5sum < $0 && ls -R $(dirname $0) | grep -c stream.bin", &[stream]).await;
    let sum = told.said(longshore::events::LogStream::Stdout);
    let expected =
        std::process::Command::new("md5sum").arg("/dev/stdin").stdin(piped(&content)).output().unwrap();
    let expected = String::from_utf8(expected.stdout).unwrap();
    assert_eq!(sum.split_whitespace().next(), expected.split_whitespace().next(), "{:?}", told.result);
    assert_eq!(sum.lines().nth(1), Some("0"));
    assert_eq!(told.details.streams[0].bytes, 3_000_000);
}

/// A file of these bytes, as the input of a process.
fn piped(content: &[u8]) -> std::fs::File {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

#[tokio::test]
async fn a_wrong_id_or_token_fails_before_any_container_is_made_and_says_what_to_do() {
    let rig = Rig::new().await;
    let (id, _) = rig.upload(&rig.folder, "a", b"a").await;
    let missing = "5f5f5f5f5f5f5f5f5f5f5f5f";
    for (class, field) in [
        ("GirderFileIdToVolume", "file_id"),
        ("GirderItemIdToVolume", "item_id"),
        ("GirderFolderIdToVolume", "folder_id"),
    ] {
        let spec = rig.transform(json!({"$": class, field: missing}));
        let told = rig.sh("true", &[spec]).await;
        let error = told.error();
        assert!(told.details.container.is_none());
        assert!(error.message.starts_with(&format!("{class}.{field} = \"{missing}\": ")), "{error}");
        assert!(["girder_refused", "girder_not_found"].contains(&error.code.as_str()), "{error}");
    }
    let input = json!({"$": "GirderFileIdToStream", "file_id": id,
        "girder": {"api_url": rig.girder.api_url(), "token": "no-such-token"}});
    let stream = json!({"$": "Connect", "input": input, "output": {"$": "NamedInputPipe", "name": "in"}});
    let told = rig.sh("cat $0", &[stream]).await;
    let error = told.error();
    assert!(told.details.container.is_none());
    assert!(["girder_unauthorized", "girder_forbidden"].contains(&error.code.as_str()), "{error}");
    assert!(!error.message.contains("no-such-token"));
}
