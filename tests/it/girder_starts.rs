//! The real Girder of the test support: it keeps files, jobs and artifacts as the Girder suites need.

use serde_json::Value;

use crate::support::girder::Girder;

#[tokio::test]
async fn girder_gives_back_the_file_that_was_uploaded() {
    let girder = Girder::shared().await;
    let content: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let folder = girder.folder("files").await;
    let file = girder.upload(&folder, "all-bytes", &content).await;
    assert_eq!(file["size"], 100_000);
    assert_eq!(girder.download(file["_id"].as_str().unwrap()).await, content);

    let items = girder.get(&format!("item?folderId={folder}")).await;
    assert_eq!(items.as_array().unwrap().len(), 1, "{items}");
    assert_eq!(items[0]["name"], "all-bytes");
}

#[tokio::test]
async fn a_job_is_reported_on_with_the_token_that_travels_with_it() {
    let girder = Girder::shared().await;
    let job = girder.job("unload").await;
    let (url, token) =
        (job.spec["url"].as_str().unwrap(), job.spec["headers"]["Girder-Token"].as_str().unwrap());
    let route = url.strip_prefix(girder.api_url()).unwrap().trim_start_matches('/');
    assert_eq!(job.spec["method"], "PUT");

    let path = format!("job/{}", job.id);
    assert_eq!(girder.get(&path).await["status"], 1);
    girder.call("PUT", &format!("{route}?status=2&log=first%20line"), token, b"").await;
    let seen = girder.get(&path).await;
    assert_eq!((&seen["status"], &seen["log"][0]), (&Value::from(2), &Value::from("first line")));
}

#[tokio::test]
async fn a_job_keeps_the_artifacts_that_its_task_uploads() {
    let girder = Girder::shared().await;
    let job = girder.job("artifact").await;
    let route = format!("job/{}/artifact", job.id);
    girder.post(&format!("{route}?name=log.bin&size=4"), b"\x00\x01\xfe\xff").await;
    let kept = girder.get(&route).await;
    assert_eq!((&kept[0]["name"], &kept[0]["size"]), (&Value::from("log.bin"), &Value::from(4)));

    let folder = girder.folder("outputs").await;
    let file = format!("file?parentType=folder&parentId={folder}&name=out&size=2");
    girder.call("POST", &file, &job.token, b"ok").await;
}
