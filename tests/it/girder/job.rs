//! The job page: state, log and progress as the task goes on, and a cancellation from there.

use serde_json::{Value, json};

use super::rig::{PATIENCE, Rig, log, script};
use crate::support::poll::eventually;

#[tokio::test]
async fn a_job_runs_succeeds_and_has_every_line_once_and_in_order() {
    let rig = Rig::new().await;
    let job = rig.girder.job("good").await;
    let id = rig
        .submit(&script(&rig.girder, &job, "for n in $(seq 2000); do echo line $n; done; echo last >&2"))
        .await;
    rig.finished(&id).await;
    let seen = rig.job_in(&job, 3).await;
    let told = log(&seen);
    let lines: Vec<&str> = told.lines().filter(|line| line.starts_with("line ")).collect();
    let expected: Vec<String> = (1..=2000).map(|n| format!("line {n}")).collect();
    assert_eq!(lines, expected);
    assert!(told.contains("last\n"));
    let states: Vec<&Value> = seen["timestamps"].as_array().unwrap().iter().map(|at| &at["status"]).collect();
    assert_eq!(states, [1, 2, 3], "{seen}");
    assert!(
        !told.contains(&job.token) && !told.contains(job.spec["headers"]["Girder-Token"].as_str().unwrap())
    );
}

#[tokio::test]
async fn a_failure_begins_as_girder_workers_does_and_ends_with_the_last_words() {
    let rig = Rig::new().await;
    let job = rig.girder.job("bad").await;
    rig.submit(&script(&rig.girder, &job, "echo cannot find the input >&2; exit 3")).await;
    let seen = rig.job_in(&job, 4).await;
    let told = log(&seen);
    let end = told.split("DockerException").nth(1).unwrap_or_else(|| panic!("{told}"));
    assert_eq!(end, ": Non-zero exit code from docker container (3).\ncannot find the input\n");
}

#[tokio::test]
async fn progress_is_on_the_job_while_the_task_runs() {
    let rig = Rig::new().await;
    let job = rig.girder.job("progress").await;
    let mut task = script(
        &rig.girder,
        &job,
        "echo '{\"message\": \"half way\", \"total\": 10, \"current\": 5}' > $0; echo quiet; sleep 20",
    );
    task["args"]["container_args"].as_array_mut().unwrap().push(json!({"$": "ProgressPipe"}));
    let id = rig.submit(&task).await;
    eventually(PATIENCE, "the progress is on the job", async || {
        let seen = rig.job(&job).await;
        let there = seen["progress"] == json!({"message": "half way", "total": 10.0, "current": 5.0});
        // No later line has pushed it out: a timer does.
        (there && log(&seen).contains("quiet\n")).then_some(())
    })
    .await;
    assert_eq!(rig.job(&job).await["status"], 2);
    rig.longshore.ok(&["task", "cancel", &id]).await;
    let seen = rig.job_in(&job, 5).await;
    assert!(log(&seen).contains("canceled: "), "{seen}");
}

#[tokio::test]
async fn a_quiet_task_whose_job_is_canceled_in_girder_is_stopped() {
    let rig = Rig::new().await;
    let job = rig.girder.job("cancel").await;
    let id = rig.submit(&script(&rig.girder, &job, "trap 'exit 0' TERM; echo up; sleep 600 & wait")).await;
    eventually(PATIENCE, "the container runs", async || {
        log(&rig.job(&job).await).contains("up").then_some(())
    })
    .await;
    rig.girder.call("PUT", &format!("job/{}?status=824", job.id), rig.girder.token(), b"").await;
    let record = rig.finished(&id).await;
    assert_eq!(record["status"], "canceled", "{record}");
    rig.job_in(&job, 5).await;
}

#[tokio::test]
async fn a_task_whose_job_was_canceled_before_never_starts() {
    let rig = Rig::new().await;
    let job = rig.girder.job("never").await;
    rig.girder.call("PUT", &format!("job/{}?status=824", job.id), rig.girder.token(), b"").await;
    let id = rig.submit(&script(&rig.girder, &job, "echo ran")).await;
    let record = rig.finished(&id).await;
    assert_eq!(record["status"], "canceled", "{record}");
    let seen = rig.job_in(&job, 5).await;
    assert!(!log(&seen).contains("ran\n"), "{seen}");
}

#[tokio::test]
async fn a_job_that_is_gone_stops_nobody() {
    let rig = Rig::new().await;
    let job = rig.girder.job("gone").await;
    let task = script(&rig.girder, &job, "echo fine");
    rig.girder.call("DELETE", &format!("job/{}", job.id), rig.girder.token(), b"").await;
    let id = rig.submit(&task).await;
    let record = rig.finished(&id).await;
    assert_eq!(record["status"], "succeeded", "{record}");
    eventually(PATIENCE, "nothing is owed any more", async || {
        rig.record(&id)
            .await?
            .get("owed")
            .is_none_or(|owed| owed.as_array().is_none_or(Vec::is_empty))
            .then_some(())
    })
    .await;
    assert_eq!(
        rig.worker.log().matches("cannot be told anything any more").count(),
        1,
        "{}",
        rig.worker.log()
    );
}
